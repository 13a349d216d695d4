"""The book's numbers as tidy rows: checked, saved by each chapter, published with a stamp and the shards behind them.

A chapter ends with `save`; `dfl book --scale full` publishes what the chapters saved as `results/<profile>/`, with a
stamp that names the commit, the machine and the checkpoints. "Made by this code" means a checkout of that commit.
"""

import hashlib
import json
import os
import re
import shutil
from datetime import date
from pathlib import Path

import pandas as pd

from dfl_utils import chapter as chapters
from dfl_utils import provenance, published_run
from dfl_utils.store import Ledger

COLUMNS = ("exhibit", "dataset", "split", "method", "x", "metric", "value", "low", "high", "n", "paper")
EXHIBITS = (
    *("figure3", "figure4", "figure9", *(f"table{number}" for number in range(1, 10))),
    *("tokenizer", "sweep", "beyond", "cost"),
)
DATASETS = ("nocaps", "coco")
SPLITS = ("in", "near", "out", "overall", "train", "val", "test")
METRICS = (
    *("CIDEr", "SPICE", "SPICE-like", "B@1", "B@2", "B@3", "B@4", "WMD", "CLIP-text", "SBERT"),
    *("CLIP", "DINO", "FID", "IS", "KID"),
)
KEY = ["exhibit", "dataset", "split", "method", "metric", "x"]
NUMBERS = ["x", "value", "low", "high", "n", "paper"]
# Metrics of exhibit `cost` that are seconds or ratios of seconds: two runs of one code differ in them.
TIMED = (
    "seconds a caption",
    "joint step ratio",
    "joint step over naive plain steps",
    "times the original cost, about",
)
STAMPED = ("profile", "commit", "date", "machine", "versions", "checkpoints", "exhibits", "chapters")
ASKED = ("made", "found", "published")  # lines of a ledger: what the chapter itself asked for
TRAINED = re.compile(r"(captioner|generator)-[0-9a-f]{16}$")  # folders of finetuned models
SOURCES = ("dfl_utils", "book", "data", "params", "pyproject.toml", "constraints.txt")  # what numbers are made of


def folder() -> Path:
    """Where this process's chapters save their numbers and pictures: DFL_RESULTS, or `_build/results/interactive`."""
    path = Path(os.environ.get("DFL_RESULTS") or provenance.ROOT / "_build" / "results" / "interactive")
    path.mkdir(parents=True, exist_ok=True)
    return path


def validate(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with numeric columns as floats, ready to be written.

    Args:
        frame: rows with the columns `COLUMNS`; `low`, `high`, `x` and `paper` may be empty.

    Raises:
        ValueError: one sentence that names the first row that breaks a rule.
    """
    if tuple(frame.columns) != COLUMNS:
        raise ValueError(f"Exhibit rows need the columns {','.join(COLUMNS)}, not {','.join(map(str, frame.columns))}.")
    frame = frame.reset_index(drop=True)
    frame[NUMBERS] = frame[NUMBERS].apply(pd.to_numeric)
    frame[["dataset", "split", "method"]] = frame[["dataset", "split", "method"]].fillna("")
    # Measurements of a tokenizer or of time belong to no data set.
    free = frame.exhibit.isin(["tokenizer", "cost"])
    spelling = {name.casefold(): name for name in METRICS}
    known = frame.metric.astype(str).str.casefold().map(spelling)
    _require(frame.exhibit.isin(EXHIBITS), frame, f"exhibit is one of {', '.join(EXHIBITS)}")
    _require(frame.dataset.isin(DATASETS) | (free & frame.dataset.eq("")), frame, "dataset is nocaps or coco")
    _require(frame.split.isin(SPLITS) | (free & frame.split.eq("")), frame, f"split is one of {', '.join(SPLITS)}")
    _require(known.isna() | (known == frame.metric), frame, f"metric is spelled as in {', '.join(METRICS)}")
    _require(frame.value.notna(), frame, "value is a number")
    _require(frame.low.isna() == frame.high.isna(), frame, "low and high come together")
    _require(frame.low.isna() | frame.value.between(frame.low, frame.high), frame, "low <= value <= high")
    _require(frame.n.ge(1) & frame.n.mod(1).eq(0), frame, "n is a whole number of images, at least 1")
    _require(~frame.duplicated(KEY), frame, f"{', '.join(KEY)} together are unique")
    return frame


def _require(holds: pd.Series, frame: pd.DataFrame, rule: str) -> None:
    if not holds.all():
        row = frame[~holds].iloc[0]
        shown = ", ".join(f"{column}={row[column]}" for column in COLUMNS if pd.notna(row[column]))
        raise ValueError(f"An exhibit row breaks the rule that {rule}: {shown}.")


def save(chapter: str, frame: pd.DataFrame, cost: dict[str, float]) -> Path:
    """Write a chapter's rows and what made them; call it once, at the chapter's end.

    Args:
        chapter: the notebook's name without its suffix.
        frame: rows, see `validate`.
        cost: `seconds` of model work and `model_calls`, as first spent where a store answered instead.

    Returns:
        Path of the CSV, `<folder()>/<chapter>.csv`; a JSON of the same name lies beside it.
    """
    if set(cost) != {"seconds", "model_calls"} or not all(value >= 0 for value in cost.values()):
        raise ValueError(f"The cost of chapter {chapter} is {{'seconds': ..., 'model_calls': ...}}, not {cost}.")
    path = folder() / f"{chapter}.csv"
    _write_csv(validate(frame), path)
    record = {
        "chapter": chapter,
        "cost": {"seconds": round(cost["seconds"], 1), "model_calls": int(cost["model_calls"])},
        "checkpoints": provenance.checkpoints(),
        "versions": provenance.versions(),
        "machine": provenance.machine(),
        "exhibits": sorted(set(frame.exhibit)),
    }
    _write_json(record, path.with_suffix(".json"))
    return path


def record_run(directory: Path, chapter: str, parameters: dict) -> None:
    """Add the parameters that the runner gave to the JSON that a chapter saved."""
    path = directory / f"{chapter}.json"
    if path.is_file():
        record = json.loads(path.read_text(encoding="utf-8")) | {"parameters": parameters}
        _write_json(record, path)


def merged(scale_dir: Path) -> tuple[pd.DataFrame, dict[str, dict]]:
    """The rows of all chapters that saved some in a folder, and what each chapter recorded.

    Raises:
        ValueError: no chapter saved numbers, one was run by hand, or two saved the same row.
    """
    records = {}
    for name in chapters.sources():
        if (scale_dir / f"{name}.json").is_file():
            records[name] = json.loads((scale_dir / f"{name}.json").read_text(encoding="utf-8"))
            if "parameters" not in records[name]:
                raise ValueError(f"Chapter {name} in {scale_dir} was not run by `dfl book`; run that first.")
    if not records:
        raise ValueError(f"No chapter saved numbers in {scale_dir}; there is nothing to publish.")
    return validate(pd.concat([read(scale_dir / f"{name}.csv") for name in records], ignore_index=True)), records


def write(frame: pd.DataFrame, path: Path) -> None:
    """Rows sorted, floats with six digits, so that a second run changes few lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_csv(validate(frame), path)


def publish(profile: str, scale_dir: Path, store: Path) -> Path:
    """Merge what the chapters saved in `scale_dir` into `results/<profile>/`: rows, stamp, pictures and shards.

    Args:
        profile: folder of `results/`.
        scale_dir: where the chapters saved.
        store: folder of the run store that they filled.

    Returns:
        The folder written.

    Raises:
        ValueError: as `merged`; changes that are not committed; a shard that is lost.
    """
    require_clean()
    frame, records = merged(scale_dir)
    target = provenance.ROOT / "results" / profile
    target.mkdir(parents=True, exist_ok=True)
    ledgers = {name: Ledger.read(scale_dir / f"{name}.shards") for name in chapters.sources()}
    asked = {name: [stem for how, stem in lines if how in ASKED] for name, lines in ledgers.items()}
    behind = [stem for lines in ledgers.values() for how, stem in lines if how not in ASKED]
    published_run.write(target / "store", store, asked, behind)
    for picture in sorted([*scale_dir.glob("*.png"), *scale_dir.glob("*.svg")]):
        shutil.copyfile(picture, target / picture.name)
    write(frame, target / "exhibits.csv")
    _write_json(_stamp(profile, records, target / "exhibits.csv"), target / "stamp.json")
    return target


def require_clean() -> None:
    """ValueError where the tree is no commit: a stamp names one."""
    if not provenance.git("rev-parse", "HEAD"):
        raise ValueError("Numbers are published from a commit, and git names none here: publish from a clone.")
    if changes := provenance.git("status", "--porcelain", "--", ".", ":!results"):
        name = changes.splitlines()[0].split()[-1]
        raise ValueError(
            f"Numbers are published from a commit, and {name} is not committed: commit it, or put it aside."
        )


def _stamp(profile: str, records: dict[str, dict], table: Path) -> dict:
    last = next(reversed(records.values()))
    # What a training left lies in the store, and its shard says what it was trained from.
    used = [one for record in records.values() for one in record["checkpoints"].values()]
    checkpoints = {one["path"]: one["sha256"] for one in used if not TRAINED.search(one["path"])}
    frame = read(table)
    return {
        "profile": profile,
        "commit": provenance.git("rev-parse", "HEAD") or "none",
        "date": date.today().isoformat(),
        "machine": last["machine"],
        "versions": last["versions"],
        "checkpoints": dict(sorted(checkpoints.items())),
        "exhibits": hashlib.sha256(table.read_bytes()).hexdigest(),
        "chapters": {
            name: {
                "parameters": record["parameters"],
                "seconds": record["cost"]["seconds"],
                "model_calls": record["cost"]["model_calls"],
                "exhibits": [one for one in frame.exhibit.unique() if one in record["exhibits"]],
            }
            for name, record in records.items()
        },
    }


def published() -> list[str]:
    """Profiles whose results are in the tree."""
    return sorted(path.parent.name for path in (provenance.ROOT / "results").glob("*/stamp.json"))


def stamp(profile: str) -> dict:
    """What `publish` wrote of a profile's numbers.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    path = provenance.ROOT / "results" / profile / "stamp.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if lost := [name for name in STAMPED if name not in found]:
            raise ValueError(f"it has no {lost[0]}, as those of an older layout")
        return found
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}): `git checkout -- results/{profile}` brings it back."
        ) from None


def changed(profile: str) -> list[str]:
    """What has changed in the tree since the commit of `results/<profile>/`, one sentence each; never a fault.

    Numbers are the commit's. A later tree makes the same ones unless a version was raised, a model, a data set or a
    statistic changed: `dfl verify` finds out.
    """
    try:
        made = stamp(profile)
    except ValueError as error:
        return [str(error)]
    where, commit = f"results/{profile}", made["commit"]
    if provenance.git("cat-file", "-t", commit) != "commit":
        return [f"{where}: commit {commit[:12]} is not in this clone; `git fetch --unshallow` brings the history."]
    names = provenance.git("diff", "--name-only", commit, "--", *SOURCES).splitlines()
    sentences = [f"{where}: {name} has changed since {commit[:12]}" for name in names]
    table = provenance.ROOT / where / "exhibits.csv"
    if not table.is_file() or hashlib.sha256(table.read_bytes()).hexdigest() != made["exhibits"]:
        sentences.append(f"{where}/exhibits.csv is not the file that was stamped; restore it from git.")
    return sentences


def read(path: Path) -> pd.DataFrame:
    """Read rows as `save` and `publish` write them; a method may be called NA, None or null."""
    texts = dict.fromkeys(set(COLUMNS) - set(NUMBERS), str)
    empty = {name: [""] for name in NUMBERS}
    return validate(pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=empty))


def _write_csv(frame: pd.DataFrame, path: Path) -> None:
    ordered = frame.assign(
        exhibit=pd.Categorical(frame.exhibit, EXHIBITS),
        dataset=pd.Categorical(frame.dataset, ["", *DATASETS]),
        split=pd.Categorical(frame.split, ["", *SPLITS]),
        n=frame.n.astype(int),
    ).sort_values(KEY)
    _replace(path, ordered.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def _write_json(record: dict, path: Path) -> None:
    _replace(path, json.dumps(record, indent=2) + "\n")


def _replace(path: Path, text: str) -> None:
    """Write a whole file or none."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
