"""The book's numbers as tidy rows: checked, saved by each chapter, published with a stamp, found stale.

A chapter ends with `save`; `dfl book --scale full` publishes what the chapters saved as `results/<profile>/`,
with a stamp of the code, data and checkpoints that made it; `stale` compares that stamp with the tree.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pandas as pd

from dfl_utils import chapter as chapters
from dfl_utils import provenance

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
    }
    _write_json(record, path.with_suffix(".json"))
    return path


def record_run(directory: Path, chapter: str, run: dict) -> None:
    """Add what the runner knows (`scale`, `parameters`, `made_by`) to the JSON that a chapter saved."""
    path = directory / f"{chapter}.json"
    if path.is_file():
        _write_json(json.loads(path.read_text(encoding="utf-8")) | {"run": run}, path)


def made_by(source: Path) -> dict:
    """Hashes of what a chapter's numbers depend on in the tree: its code, the modules and the committed data."""
    modules = provenance.dependencies(source)
    data = [provenance.DATA[name] for name in modules if name in provenance.DATA]
    return {
        "code": provenance.chapter_hash(source),
        "modules": {name: provenance.code_hash([name]) for name in modules},
        "data": {path: provenance.files_hash(provenance.ROOT / path, ("*.csv", "*.json")) for path in data},
    }


def publish(profile: str, scale_dir: Path) -> Path:
    """Merge what the chapters saved in `scale_dir` into `results/<profile>/`: exhibits.csv, stamp.json, pictures.

    Only chapters of the book that were run by `dfl` count. Rows are sorted and floats have six digits, so that
    a second run changes few lines.

    Returns:
        The folder written.

    Raises:
        ValueError: no chapter saved numbers, one was run by hand, or two saved the same row.
    """
    records = {}
    for name in chapters.sources():
        if (scale_dir / f"{name}.json").is_file():
            records[name] = json.loads((scale_dir / f"{name}.json").read_text(encoding="utf-8"))
            if "run" not in records[name]:
                raise ValueError(f"Chapter {name} in {scale_dir} was not run by `dfl book`; run that first.")
    if not records:
        raise ValueError(f"No chapter saved numbers in {scale_dir}; there is nothing to publish.")
    frame = pd.concat([read(scale_dir / f"{name}.csv") for name in records], ignore_index=True)
    target = provenance.ROOT / "results" / profile
    target.mkdir(parents=True, exist_ok=True)
    for picture in sorted([*scale_dir.glob("*.png"), *scale_dir.glob("*.svg")]):
        shutil.copyfile(picture, target / picture.name)
    _write_csv(validate(frame), target / "exhibits.csv")
    _write_json(_stamp(profile, records, target / "exhibits.csv"), target / "stamp.json")
    return target


def _stamp(profile: str, records: dict[str, dict], table: Path) -> dict:
    package = provenance.ROOT / provenance.PACKAGE
    return {
        "profile": profile,
        "commit": provenance.git("rev-parse", "HEAD") or "none",
        "uncommitted_changes": bool(provenance.git("status", "--porcelain", "--", ".", ":!results")),
        "dfl_utils": provenance.code_hash(provenance.module_name(path) for path in package.rglob("*.py")),
        "exhibits": hashlib.sha256(table.read_bytes()).hexdigest(),
        "chapters": records,
    }


def published() -> list[str]:
    """Profiles whose results are in the tree."""
    return sorted(path.parent.name for path in (provenance.ROOT / "results").glob("*/stamp.json"))


def stale(profile: str) -> list[str]:
    """Compare the stamp of `results/<profile>/` with the tree; empty where every number is still what the tree makes.

    Numbers that `equivalence.carry` has proved of a later code are that code's too.

    Returns:
        One sentence for each chapter made by another code, module, data, parameter or checkpoint, naming them.
    """
    target = provenance.ROOT / "results" / profile
    stamp = json.loads((target / "stamp.json").read_text(encoding="utf-8"))
    sentences = []
    for name, record in stamp["chapters"].items():
        run = record["run"]
        carried = record | {"run": run | stamp.get("carried", {"chapters": {}})["chapters"].get(name, {})}
        source = chapters.sources().get(name)
        if (changed := _changes(record, source)) and _changes(carried, source):
            mend = f"run `dfl book --scale {run['scale']}`"
            sentences.append(f"results/{profile}: chapter {name} was made before {', '.join(changed)} changed; {mend}.")
    if hashlib.sha256((target / "exhibits.csv").read_bytes()).hexdigest() != stamp["exhibits"]:
        sentences.append(f"results/{profile}/exhibits.csv is not the file that was stamped; restore it from git.")
    return sentences


def _changes(record: dict, source: Path | None) -> list[str]:
    """What of a published chapter's record is not so in the tree."""
    if source is None:
        return ["the table of chapters"]
    then, now = record["run"]["made_by"], made_by(source)
    parameters = chapters.effective(source, chapters.at_scale(source, record["run"]["scale"]))
    changed = ["its code"] if then["code"] != now["code"] else []
    changed += ["its parameters"] if record["run"]["parameters"] != parameters else []
    for kind in ("modules", "data"):
        names = then[kind].keys() | now[kind].keys()
        changed += sorted(name for name in names if then[kind].get(name) != now[kind].get(name))
    for checkpoint in record["checkpoints"].values():
        path = provenance.ROOT / checkpoint["path"]
        # What came from a hub is not in the tree; what lay in data/ must still be there.
        if path.is_dir():
            changed += [checkpoint["path"]] if provenance.checkpoint_hash(path) != checkpoint["sha256"] else []
        elif checkpoint["path"].startswith("data/"):
            changed.append(checkpoint["path"])
    return changed


def read(path: Path) -> pd.DataFrame:
    """Read rows as `save` and `publish` write them."""
    return validate(pd.read_csv(path, dtype=dict.fromkeys(set(COLUMNS) - set(NUMBERS), str)))


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
