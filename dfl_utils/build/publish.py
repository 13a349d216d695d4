"""What chapters saved, merged and published as `results/<profile>/`, with a stamp and the shards behind it.

The stamp names the commit, the machine and the checkpoints: "made by this code" means a checkout of that commit.
"""

import json
import re
import shutil
from datetime import date
from pathlib import Path

import pandas as pd

from dfl_utils.build import chapter as chapters
from dfl_utils.exhibits import tidy
from dfl_utils.store import provenance, published_run
from dfl_utils.store.store import ledger

ASKED = ("made", "found", "published")  # lines of a ledger: what the chapter itself asked for
TRAINED = re.compile(r"(captioner|generator)-[0-9a-f]{16}$")  # folders of finetuned models
STAMPED = ("profile", "commit", "date", "machine", "versions", "checkpoints", "exhibits", "chapters")
SOURCES = ("dfl_utils", "book", "data", "params", "pyproject.toml", "constraints.txt")  # what numbers are made of


def merged(scale_dir: Path) -> tuple[pd.DataFrame, dict[str, dict]]:
    """The rows of all chapters that saved some in a folder, and what each chapter recorded.

    ValueError: no chapter saved numbers, or two saved the same row.
    """
    records = {}
    for name in chapters.sources():
        if (scale_dir / f"{name}.json").is_file():
            records[name] = json.loads((scale_dir / f"{name}.json").read_text(encoding="utf-8"))
    if not records:
        raise ValueError(f"No chapter saved numbers in {scale_dir}; there is nothing to publish.")
    rows = pd.concat([tidy.read(scale_dir / f"{name}.csv") for name in records], ignore_index=True)
    return tidy.validate(rows), records


def publish(profile: str, scale_dir: Path, store: Path, reuse: bool = False) -> Path:
    """Merge what the chapters saved in `scale_dir` into `results/<profile>/`: rows, stamp, pictures and shards.

    The shards come from the folder of a run store; with `reuse` those that it lacks from what was published before.
    Returns the folder that was written.
    ValueError: as `merged`; changes that are not committed; a shard that is lost.
    """
    require_clean()
    frame, records = merged(scale_dir)
    target = provenance.ROOT / "results" / profile
    target.mkdir(parents=True, exist_ok=True)
    ledgers = {name: ledger(scale_dir / f"{name}.shards") for name in chapters.sources()}
    asked = {name: [stem for how, stem in lines if how in ASKED] for name, lines in ledgers.items()}
    behind = [stem for lines in ledgers.values() for how, stem in lines if how not in ASKED]
    before = published_run.PublishedRun(target / "store") if reuse else None
    published_run.write(target / "store", store, asked, behind, before)
    for picture in [*scale_dir.glob("*.png"), *scale_dir.glob("*.svg")]:
        shutil.copyfile(picture, target / picture.name)
    tidy.write(frame, target / "exhibits.csv")
    tidy.write_json(_stamp(profile, records, target / "exhibits.csv"), target / "stamp.json")
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


def _stamp(profile: str, records: dict[str, dict], rows: Path) -> dict:
    last = next(reversed(records.values()))
    # What a training left lies in the store, and its shard says what it was trained from.
    used = [one for record in records.values() for one in record["checkpoints"].values()]
    checkpoints = {one["path"]: one["sha256"] for one in used if not TRAINED.search(one["path"])}
    order = tidy.read(rows).exhibit.unique()
    ran = {}
    for name, record in records.items():
        cost = record["cost"]
        spent = {what: cost.get(what, {}) for what in ("seconds", "model_calls")}
        spent["kinds"] = _shortly(cost.get("kinds", {}))
        exhibits = [one for one in order if one in record["exhibits"]]
        ran[name] = {"parameters": record["parameters"], **spent, "exhibits": exhibits}
        ran[name] |= {"failed": failed} if (failed := record.get("failed")) else {}
    return {
        "profile": profile,
        "commit": provenance.git("rev-parse", "HEAD"),
        "date": date.today().isoformat(),
        "machine": last["machine"],
        "versions": last["versions"],
        "checkpoints": dict(sorted(checkpoints.items())),
        "exhibits": provenance.file_hash(rows),
        "chapters": ran,
    }


def _shortly(kinds: dict[str, list[float]]) -> dict[str, list[float]]:
    """Whole seconds; what took less than one and no call of a model is left out."""
    shortly = {kind: [calls, round(seconds)] for kind, (calls, seconds) in kinds.items()}
    return {kind: spent for kind, spent in shortly.items() if any(spent)}


def stamp(profile: str) -> dict:
    """What stands in `results/<profile>/stamp.json`; ValueError where that is missing or damaged."""
    path = provenance.ROOT / "results" / profile / "stamp.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if lost := [name for name in STAMPED if name not in found]:
            raise ValueError(f"it has no {lost[0]}, as those of an older layout")
        return found
    except (OSError, ValueError, TypeError) as error:
        mend = f"`git checkout -- results/{profile}` brings it back"
        raise ValueError(f"{path} cannot be read ({error}): {mend}.") from None


def table(profile: str, made: dict) -> Path:
    """The file of the published rows; ValueError where it is not the one that was stamped."""
    path = provenance.ROOT / "results" / profile / "exhibits.csv"
    if not path.is_file() or provenance.file_hash(path) != made["exhibits"]:
        mend = f"`git checkout -- results/{profile}` brings it back"
        raise ValueError(f"{path} is not the table that was stamped: {mend}.")
    return path


def changed(profile: str) -> list[str]:
    """What has changed in the tree since the commit of `results/<profile>/`, one sentence each; never a fault.

    Numbers are the commit's. A later tree makes the same ones unless a version was raised, a model, a data set or a
    statistic changed: `dfl verify` finds out.
    """
    try:
        made = stamp(profile)
        table(profile, made)
    except ValueError as error:
        return [str(error)]
    commit = made["commit"]
    if provenance.git("cat-file", "-t", commit) != "commit":
        mend = "`git fetch --unshallow` brings the history of a shallow one, a whole one lacks what was rebased"
        return [f"Commit {commit[:12]} is not in this clone: {mend}."]
    names = provenance.git("diff", "--name-only", commit, "--", *SOURCES).splitlines()
    return [f"results/{profile}: {name} has changed since {commit[:12]}" for name in names]


def main(arguments: object = None) -> None:
    """`dfl check`: print what has changed."""
    print("\n".join(changed("mini")) or "nothing has changed since results/mini was made")
