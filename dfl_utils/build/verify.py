"""Published numbers recomputed from nothing, a random few at a time, and held against what was published.

A chapter is executed with the published run but for some of its shards, drawn at random: these are made anew, with all
that they are made from, in a run store of their own, and compared. The rows that the chapter then saves are compared
with the published ones. So every statistic of a row is done again, and the models' work behind it for some images.
"""

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd

from dfl_utils.build import chapter as chapters
from dfl_utils.build import golden, kernels, publish
from dfl_utils.build.chapter import BuildFailed
from dfl_utils.build.execution import environment, folder, run_chapter
from dfl_utils.exhibits import tidy
from dfl_utils.store import provenance, published_run, shards
from dfl_utils.store.published_run import PublishedRun, kind_of
from dfl_utils.store.store import canonical
from dfl_utils.training.finetuned import FINETUNING, WEIGHTS

PROFILE = "mini"
ROWS, MINUTES = 10, 10.0
OVERHEAD = 40.0  # seconds that a chapter takes beside its models' work, about
CHAPTERS = 3  # at most, where none is named
TIMES = ("step-seconds",)  # kinds of shard that hold a day's measurements
OWN = ("noted", "digests")  # contents of one day, and of the last bits of one machine
TRAINED = re.compile(r"trained as (weights-[0-9a-f]{64}) to")


def main(
    what: str | None = None, rows: int | None = None, seed: int | None = None, minutes: float | None = None
) -> int:
    """Verify, print what was found, and say by 0 or 1 whether all of it agrees.

    Args:
        what: a chapter or an exhibit; None: some that fit.
        rows: how many rows are compared.
        seed: draws rows, chapters and shards.
        minutes: how long the recomputing may take, by the costs that were recorded when the shards were made.

    Raises:
        ValueError: an unknown name, numbers out of range, no published run, a model that is not there.
    """
    rows, minutes = ROWS if rows is None else rows, MINUTES if minutes is None else minutes
    seed = date.today().toordinal() if seed is None else seed
    if rows < 1 or not 0 < minutes < float("inf") or seed < 0:
        raise ValueError(
            f"--rows {rows}, --minutes {minutes:g}, --seed {seed}: give at least 1 row, some time, a seed."
        )
    stamp = publish.stamp(PROFILE)
    run = PublishedRun(published_run.place())
    run.require_whole()
    _require_models(stamp)
    published = _table(stamp)
    random = np.random.default_rng(seed)
    names = _chapters(stamp, what, random, minutes)
    print(f"verifying {', '.join(names)}: {rows} rows, {minutes:g} minutes, seed {seed}", flush=True)
    wanted = published if what is None or what in stamp["chapters"] else published[published.exhibit == what]
    folder("verify").mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(dir=folder("verify")))
    found, compared = [], []
    try:
        for name in names:
            chosen = _choose(run, name, stamp, random, 60 * minutes / len(names) - OVERHEAD)
            frame = _recompute(run, name, stamp["chapters"][name]["parameters"], chosen, place / name)
            compared += [_compare(run, stem, place / name / "store") for stem in chosen]
            found.append(frame)
    finally:
        shutil.rmtree(place, ignore_errors=True)
        with suppress(OSError):  # another verification is at work there
            folder("verify").rmdir()
    lines = _rows(wanted, pd.concat(found, ignore_index=True), names, stamp, rows, random)
    return _report(lines, pd.DataFrame(compared, columns=["shard", "made in, s", "largest difference", "agrees"]))


def _table(stamp: dict) -> pd.DataFrame:
    """The published rows; ValueError where they are not those that were stamped."""
    path = provenance.ROOT / "results" / PROFILE / "exhibits.csv"
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != stamp["exhibits"]:
        raise ValueError(
            f"{path} is not the table that was stamped: `git checkout -- results/{PROFILE}` brings it back."
        )
    return tidy.read(path)


def _require_models(stamp: dict) -> None:
    for path in stamp["checkpoints"]:
        if path.startswith("data/") and not (provenance.ROOT / path).is_dir():
            raise ValueError(f"{path} is not there, and recomputing needs it: `git checkout -- {path}` brings it back.")


def _chapters(stamp: dict, what: str | None, random: np.random.Generator, minutes: float) -> list[str]:
    """The chapters to execute: that of a name, or some that are drawn."""
    known = stamp["chapters"]
    if what is None:
        count = int(np.clip(60 * minutes / (4 * OVERHEAD), 1, CHAPTERS))
        return [str(name) for name in random.permutation(list(known))[:count]]
    names = [what] if what in known else [name for name, record in known.items() if what in record["exhibits"]]
    if not names:
        exhibit_names = sorted({one for record in known.values() for one in record["exhibits"]})
        raise ValueError(f"There is no chapter or exhibit {what}: choose one of {', '.join([*known, *exhibit_names])}.")
    return names


def _choose(run: PublishedRun, name: str, stamp: dict, random: np.random.Generator, seconds: float) -> list[str]:
    """Shards of a chapter, drawn at random, that can be made from nothing in so many seconds.

    What trained models say and draw is drawn for on the processor of the published run alone: hundreds of steps make
    other words of a last bit that another processor rounds otherwise. The losses of trainings are drawn for anywhere.
    """
    asked = [stem for stem in run.chapters.get(name, []) if kind_of(stem) not in TIMES]
    here = provenance.machine()
    same = all(here[name] == stamp["machine"].get(name) for name in ("cpu", "kernels"))
    pool = asked if same else [stem for stem in asked if not TRAINED.search(_text(run, stem))]
    if len(pool) < len(asked):
        print(
            f"{name}: {len(asked) - len(pool)} shards of trained models are left out on another processor", flush=True
        )
    chosen, behind = [], {}
    for k in random.permutation(len(pool)):
        needed = behind | costs(run, pool[k])
        if sum(needed.values()) <= seconds:
            chosen.append(pool[k])
            behind = needed
    print(
        f"{name}: {len(chosen)} of {len(pool)} shards made anew, {sum(behind.values()):.0f} s by their records",
        flush=True,
    )
    return chosen


def costs(run: PublishedRun, stem: str) -> dict[str, float]:
    """Seconds of a shard's making and of those that its key names, such as the drawings that it was measured on."""
    key = json.loads(_text(run, stem))
    if "kind" not in key:
        return {stem: 0.0}
    stems = {stem, *_named(key)}
    if key["kind"] == FINETUNING.name:  # the weights behind it are of the same parts
        parts = {name: value for name, value in key.items() if name not in ("kind", "version", "made from")}
        stems.add(WEIGHTS.stem(parts))
    return {one: (run.cost(one) or (0.0, 0))[0] for one in stems}


def _text(run: PublishedRun, stem: str) -> str:
    """A shard's key as it is hashed; an empty one where the shard is not whole, which comparing will say."""
    try:
        return run.metadata(stem).get("key", "{}")
    except (FileNotFoundError, shards.Broken):
        return "{}"


def _named(part: object) -> Iterator[str]:
    """The shards that are named inside a key."""
    if isinstance(part, dict):
        if "kind" in part and "version" in part:
            yield _stem(part)
        part = list(part.values())
    if isinstance(part, list):
        for one in part:
            yield from _named(one)
    if isinstance(part, str):
        yield from TRAINED.findall(part)


def _stem(key: dict) -> str:
    return f"{key['kind']}-{hashlib.sha256(canonical(key).encode()).hexdigest()}"


def _recompute(run: PublishedRun, name: str, parameters: dict, chosen: Sequence[str], place: Path) -> pd.DataFrame:
    """The rows that a chapter saves when the chosen shards are not there.

    Raises:
        BuildFailed: the chapter failed, or asks for other shards than were published.
    """
    only = place / "only.txt"
    place.mkdir(parents=True)
    only.write_text("\n".join(chosen), encoding="utf-8")
    variables = {
        "DFL_STORE": str(place / "store"),
        "DFL_PUBLISHED": str(run.folder),
        "DFL_PUBLISHED_INNER": "0",
        "DFL_ONLY": str(only),
        "OMP_NUM_THREADS": "1",  # as the published run was made
    }
    values = chapters.check(chapters.find(name), parameters)
    with environment(**kernels.variables(), **variables):
        kernels.start()
        run_chapter(name, values, target=place / f"{name}.ipynb", results=place / "results")
    return tidy.read(place / "results" / f"{name}.csv")


def _compare(run: PublishedRun, stem: str, store: Path) -> tuple[str, float, float, bool]:
    """A shard's name, seconds, largest difference (of texts, the share that differ), and whether it agrees."""
    name, seconds = f"{kind_of(stem)} {stem.rpartition('-')[2][:8]}", (run.cost(stem) or (0.0, 0))[0]
    try:
        published, _ = run.read(stem)
        recomputed, _ = shards.read(store / f"{stem}.safetensors")
    except (FileNotFoundError, shards.Broken):
        return name, seconds, np.nan, False
    return name, seconds, *alike(published, recomputed, kind_of(stem))


def alike(published: shards.Content, recomputed: shards.Content, kind: str = "images") -> tuple[float, bool]:
    """Largest difference of two contents of a kind, and whether it is within what machines differ by.

    Texts agree where at most `golden.TEXTS` of them differ; numbers as `golden.of_shard` says.
    """
    share, relative = golden.of_shard(kind)
    if published.keys() != recomputed.keys():
        return np.nan, False
    largest, agrees = 0.0, True
    for name in published.keys() - set(OWN):
        old, new = published[name], recomputed[name]
        if isinstance(old, list) or isinstance(new, list):
            if type(old) is not type(new) or len(old) != len(new):
                return np.nan, False
            apart, limit = np.mean([a != b for a, b in zip(old, new, strict=True)] or [0.0]), golden.TEXTS
        elif old.shape != new.shape or old.dtype.kind != new.dtype.kind:
            return np.nan, False
        elif old.dtype.kind in "biu":
            apart, limit = (old != new).mean() if old.size else 0.0, share
        else:
            apart, limit = _distance(old, new), relative * _largest(old) + golden.ZERO
        largest, agrees = max(largest, float(apart)), agrees and bool(apart <= limit)
    return largest, agrees


def _distance(old: np.ndarray, new: np.ndarray) -> float:
    finite = np.isfinite(old)
    if not np.array_equal(old[~finite], new[~np.isfinite(new)], equal_nan=True) or (finite != np.isfinite(new)).any():
        return np.inf
    return float(np.abs(new[finite].astype(np.float64) - old[finite]).max(initial=0.0))


def _largest(values: np.ndarray) -> float:
    return float(np.abs(values[np.isfinite(values)]).max(initial=0.0))


def _rows(
    published: pd.DataFrame, recomputed: pd.DataFrame, names: list[str], stamp: dict, count: int, random
) -> pd.DataFrame:
    """Some published rows of those chapters beside what was recomputed."""
    theirs, ours = (frame[~_timed(frame)] for frame in (published, recomputed))
    mine = {one for name in names for one in stamp["chapters"][name]["exhibits"]}
    others = {one for name, record in stamp["chapters"].items() if name not in names for one in record["exhibits"]}
    both = theirs[theirs.exhibit.isin(mine)].merge(ours[tidy.KEY], on=tidy.KEY, how="left", indicator=True)
    # A row of an exhibit that other chapters make, too, is theirs where these made none.
    known = both[both["_merge"].eq("both") | ~both.exhibit.isin(others)].drop(columns="_merge")
    if known.empty:
        raise BuildFailed("There is no published row to compare: those that are left are times, or of other chapters.")
    chosen = known.iloc[np.sort(random.permutation(len(known))[:count])]
    fresh = ours.merge(chosen[tidy.KEY], on=tidy.KEY)
    # What a chapter makes now and was never published is no agreement either.
    beside = ours[ours.exhibit.isin(published.exhibit)].merge(theirs[tidy.KEY], on=tidy.KEY, how="left", indicator=True)
    extra = beside[beside["_merge"].eq("left_only")].drop(columns="_merge")
    return golden.differences(chosen, pd.concat([fresh, extra], ignore_index=True))


def _timed(frame: pd.DataFrame) -> pd.Series:
    return frame.exhibit.eq("cost") & frame.metric.isin(tidy.TIMED)


def _report(lines: pd.DataFrame, compared: pd.DataFrame) -> int:
    """Print both tables; 1 where anything does not agree."""
    words = {True: "yes", False: "no"}
    shown = lines.assign(agrees=lines.agrees.map(words)).rename(columns={"old": "published", "new": "recomputed"})
    print(shown.to_string(index=False, na_rep="", float_format="{:.6g}".format))
    if len(compared):
        print(compared.assign(agrees=compared.agrees.map(words)).to_string(index=False, float_format="{:.3g}".format))
    wrong = int((~lines.agrees).sum()), int((~compared.agrees.astype(bool)).sum())
    print(
        f"{len(lines)} numbers of {len(lines.drop_duplicates(tidy.KEY))} rows, {wrong[0]} apart; "
        f"{len(compared)} shards, {wrong[1]} apart"
    )
    return 1 if any(wrong) else 0
