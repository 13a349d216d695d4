"""Published numbers recomputed from nothing, a random few at a time, and held against what was published.

A chapter is executed with the published run but for some of its shards, drawn at random: these are made anew, with all
that they are made from, in a run store of their own, and compared. The rows that the chapter then saves are compared
with the published ones. So every statistic of a row is done again, and the models' work behind it for some images.
"""

import argparse
import hashlib
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd

from dfl_utils.build import golden, kernels, publish
from dfl_utils.build.execution import environment, folder, run_chapter
from dfl_utils.exhibits import tidy
from dfl_utils.store import provenance, published_run, shards
from dfl_utils.store.published_run import PublishedRun, kind_of
from dfl_utils.store.store import canonical
from dfl_utils.training.finetuned import FINETUNING, WEIGHTS

OVERHEAD = 40.0  # seconds that a chapter takes beside its models' work, about
CHAPTERS = 3  # at most, where none is named
TIMES = ("step-seconds", "judging-seconds")  # kinds of shard that hold a day's measurements
PAINTERS = "unet-weights"  # in keys: trained in one go, each from where the one before it stood, for half an hour
TRAINED = re.compile(r"trained as (weights-[0-9a-f]{64}) to")


def main(arguments: argparse.Namespace) -> int:
    """Verify a chapter, an exhibit or some chapters, print what was found, and say by 0 or 1 whether all of it agrees.

    All rows of a chapter are compared; those that do not agree are shown, and some that do.

    Raises:
        ValueError: an unknown name, numbers out of range, no published run.
        BuildFailed: a chapter failed, or asks for other shards than were published.
    """
    what, rows, minutes = arguments.what, arguments.rows, arguments.minutes
    seed = date.today().toordinal() if arguments.seed is None else arguments.seed
    if rows < 1 or not 0 < minutes < float("inf") or seed < 0:
        raise ValueError(f"--rows {rows}, --minutes {minutes:g}, --seed {seed}: give a row, some time, a seed from 0.")
    stamp = publish.stamp("mini")
    published, run = tidy.read(publish.table("mini", stamp)), PublishedRun(published_run.place())
    run.require_whole()
    for path in stamp["checkpoints"]:
        if path.startswith("data/") and not (provenance.ROOT / path).is_dir():
            raise ValueError(f"{path} is not there, and recomputing needs it: `git checkout -- {path}` brings it back.")
    random = np.random.default_rng(seed)
    names = _chapters(stamp["chapters"], what, random, minutes)
    print(f"verifying {', '.join(names)}: {minutes:g} minutes, seed {seed}", flush=True)
    found, compared = [], []
    folder("verify").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder("verify")) as place:
        for name in names:
            chosen = _choose(run, name, stamp, random, 60 * minutes / len(names) - OVERHEAD)
            found.append(_recompute(name, stamp["chapters"][name]["parameters"], chosen, Path(place, name)))
            compared += [_compare(run, stem, Path(place, name, "store")) for stem in chosen]
    lines = _lines(published, pd.concat(found, ignore_index=True), stamp["chapters"], names)
    if what not in (None, *names):
        lines = lines[lines.exhibit == what]
    return _report(lines, pd.DataFrame(compared, columns=["shard", "made in, s", "difference", "agrees"]), rows, random)


def _chapters(known: dict[str, dict], what: str | None, random: np.random.Generator, minutes: float) -> list[str]:
    """The chapters to execute: that of a name, or some that are drawn."""
    if what is None:
        count = int(np.clip(60 * minutes / (4 * OVERHEAD), 1, CHAPTERS))
        return [str(name) for name in random.permutation(list(known))[:count]]
    if names := [name for name, record in known.items() if what in (name, *record["exhibits"])]:
        return names if what not in known else [what]
    exhibits = sorted({one for record in known.values() for one in record["exhibits"]})
    raise ValueError(f"There is no chapter or exhibit {what}: choose one of {', '.join([*known, *exhibits])}.")


def _choose(run: PublishedRun, name: str, stamp: dict, random: np.random.Generator, seconds: float) -> list[str]:
    """Shards of a chapter, drawn at random, that can be made from nothing in so many seconds.

    What trained models say and draw is drawn for on the processor of the published run alone: hundreds of steps make
    other words of a last bit that another processor rounds otherwise. The losses of trainings are drawn for anywhere;
    painters that were trained from nothing, and what was asked of them, nowhere.
    """
    pool = [stem for stem in run.chapters.get(name, []) if kind_of(stem) not in TIMES]
    pool = [stem for stem in pool if PAINTERS not in run.metadata(stem)["key"]]
    here = provenance.machine()
    if any(here[part] != stamp["machine"].get(part) for part in ("cpu", "kernels")):
        asked, pool = len(pool), [stem for stem in pool if not TRAINED.search(run.metadata(stem)["key"])]
        print(f"{name}: {asked - len(pool)} shards of trained models are left out on another processor", flush=True)
    chosen, behind = [], {}
    for k in random.permutation(len(pool)):
        needed = behind | costs(run, pool[k])
        if sum(needed.values()) <= seconds:
            chosen.append(pool[k])
            behind = needed
    took = sum(behind.values())
    print(f"{name}: {len(chosen)} of {len(pool)} shards made anew, {took:.0f} s by their records", flush=True)
    return chosen


def costs(run: PublishedRun, stem: str) -> dict[str, float]:
    """Seconds of a shard's making and of those that its key names, such as the drawings that it was measured on."""
    text = run.metadata(stem)["key"]
    key = json.loads(text)
    stems = {stem, *_named([key]), *TRAINED.findall(text)}
    if kind_of(stem) == FINETUNING.name:  # the weights behind it are of the same parts
        stems.add(WEIGHTS.stem({name: key[name] for name in key.keys() - {"kind", "version", "made from"}}))
    return {one: (run.cost(one) or (0.0, 0))[0] for one in stems}


def _named(part: object) -> Iterator[str]:
    """The shards whose keys stand inside a part of a key."""
    for one in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        if isinstance(one, dict) and {"kind", "version"} <= one.keys():
            yield f"{one['kind']}-{hashlib.sha256(canonical(one).encode()).hexdigest()}"
        yield from _named(one)


def _recompute(name: str, parameters: dict, chosen: Sequence[str], place: Path) -> pd.DataFrame:
    """The rows that a chapter saves when the chosen shards are not there."""
    only, store = place / "only.txt", str(place / "store")
    place.mkdir()
    only.write_text("\n".join(chosen), encoding="utf-8")
    variables = {"DFL_STORE": store, "DFL_PUBLISHED": str(published_run.place()), "DFL_PUBLISHED_INNER": "0"}
    threads = "1"  # as the published run was made
    with environment(**kernels.variables(), **variables, DFL_ONLY=str(only), OMP_NUM_THREADS=threads):
        kernels.start()
        run_chapter(name, parameters, target=place / f"{name}.ipynb", results=place / "results")
    return tidy.read(place / "results" / f"{name}.csv")


def _compare(run: PublishedRun, stem: str, store: Path) -> tuple[str, float, float, bool]:
    """A shard's name, its seconds with what it was made of, largest difference, and whether it agrees."""
    kind, _, digest = stem.rpartition("-")
    try:
        found = golden.alike(run.read(stem)[0], shards.read(store / f"{stem}.safetensors")[0], kind)
    except (FileNotFoundError, shards.Broken):
        found = np.nan, False
    return f"{kind} {digest[:8]}", sum(costs(run, stem).values()), *found


def _lines(published: pd.DataFrame, recomputed: pd.DataFrame, known: dict, names: Sequence[str]) -> pd.DataFrame:
    """The numbers of these chapters' exhibits; rows that they did not make are other chapters', if others make some."""
    own = {one for name in names for one in known[name]["exhibits"]}
    others = {one for name, record in known.items() if name not in names for one in record["exhibits"]}
    lines = golden.differences(published[published.exhibit.isin(own)], recomputed)
    return lines[~(lines.exhibit.isin(others) & lines.what.eq("row") & lines.new.isna())]


def _report(lines: pd.DataFrame, compared: pd.DataFrame, rows: int, random: np.random.Generator) -> int:
    """Print the rows that do not agree, some of the others, and the shards; 1 where anything does not agree."""
    wrong = lines[~lines.agrees.astype(bool)]
    fine = lines.drop(wrong.index)
    some = fine.iloc[np.sort(random.permutation(len(fine))[:rows])]
    for shown in (pd.concat([wrong, some]), compared):
        words = shown.assign(agrees=shown.agrees.map({True: "yes", False: "no"}))
        print(golden.table(words.rename(columns={"old": "published", "new": "recomputed"})))
    apart = int((~compared.agrees.astype(bool)).sum())
    count = len(lines.drop_duplicates(tidy.KEY))
    print(f"{len(lines)} numbers of {count} rows, {len(wrong)} apart; {len(compared)} shards, {apart} apart")
    return 1 if len(wrong) or apart else 0
