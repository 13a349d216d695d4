"""All benchmarks, one after the other on one machine, as results/mini/benchmarks.csv.

Each group runs in an interpreter of its own and leaves its rows in a folder; one whose rows are there is not run again,
so a stopped run goes on where it was. `ratio` is what a target is about; `note` says what was done, the target and
whether it was met, the day and the machine.
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import median
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[1]
TARGET, FOLDER = ROOT / "results" / "mini" / "benchmarks.csv", ROOT / "_build" / "benchmarks"
COLUMNS = ("name", "ours", "other", "ratio", "unit", "note")
Row = dict[str, object]


def row(name: str, pair: tuple[float, float], ratio: float, unit: str, note: str, least=0.0, most=0.0) -> Row:
    """One line of the table; `least` and `most` bound the ratio, 0 where nothing does."""
    bounds = [f"at least {least:g}"] * bool(least) + [f"at most {most:g}"] * bool(most)
    met = ratio >= least and (not most or ratio <= most)
    told = f"target {' and '.join(bounds)}: {'met' if met else 'missed'}" if bounds else "no target"
    ours, other, ratio = (float(f"{value:.4g}") for value in (*pair, ratio))
    return {"name": name, "ours": ours, "other": other, "ratio": ratio, "unit": unit, "note": f"{note}; {told}"}


def loop(quick: bool) -> list[Row]:
    import reconstruction as bench

    from dfl_utils.world import data, profile

    world = profile.load("mini", num_inference_steps=10 if quick else 50)
    data.ensure(world)
    count, alone, rounds = (20, 2, 1) if quick else (120, 6, 3)
    times = bench.measure(bench.contenders(world, count, alone), rounds)
    ratios = bench.summary(times)
    draw, one, bare, _, whole, naive, passes = map(median, times.values())
    unit, how = "ms a reconstruction", f"{world.num_inference_steps} steps, {count} drawings, medians of {rounds}"
    speed, spent = f"speed; {how}", f"time; {how}"
    names = ("draw: speed against (a)", "draw: time against (b)", "i2t2i: speed against (c)", "i2t2i: time against (d)")
    a, b, c, d = (ratios[name] for name in names)
    return [
        row("drawing against one pipeline call a caption", (draw, one), a, unit, speed, bench.AT_LEAST),
        row("drawing against bare forward passes", (draw, bare), b, unit, spent, most=bench.AT_MOST),
        row("i2t2i against the naive pipeline loop", (whole, naive), c, unit, speed),
        row("i2t2i against bare forward passes", (whole, passes), d, unit, spent),
    ]


def processes(quick: bool) -> list[Row]:
    import processes as bench

    images, steps, rounds = (32, 5, 1) if quick else (bench.IMAGES, bench.STEPS, 2)
    one, two = bench.measure(images, steps, rounds).values()
    ratio = median(a / b for a, b in zip(one, two, strict=True))
    how = f"speed of two; i2t2i of {images} images x {bench.CANDIDATES}, {steps} steps, one thread each"
    return [row("two processes against one", (median(two), median(one)), ratio, "s", how, bench.AT_LEAST)]


def scaling(quick: bool) -> list[Row]:
    import scaling as bench

    few, *more = (16, 32) if quick else bench.COUNTS
    found = bench.measure((few, *more))
    each = {count: 1000 * spent["seconds"] / count for count, spent in found.items()}
    peak = {count: spent["peak"] for count, spent in found.items()}
    how = f"i2t2i, {bench.CANDIDATES} candidates, {bench.STEPS} denoising step, one thread"
    rows = [
        row(
            f"cost an image, {count} images against {few}",
            (each[count], each[few]),
            each[count] / each[few],
            "ms of the processor",
            how,
            1 - bench.LINEAR,
            1 + bench.LINEAR,
        )
        for count in more
    ]
    largest, name = more[-1], f"peak memory, {more[-1]} images against {few}"
    ratio = peak[largest] / peak[few]
    return [*rows, row(name, (peak[largest], peak[few]), ratio, "MiB", how, most=1 + bench.FLAT)]


def builds(quick: bool) -> list[Row]:
    import book as bench

    if quick:  # a whole book has to be built
        return []
    first, second, before = bench.published()
    how = f"the published book, other: {bench.BEFORE} at scale quick from an empty store; a new checkout of each"
    share = first.seconds / before.seconds
    return [
        row("make book against before", (first.seconds, before.seconds), share, "s", how, most=round(bench.SHARE, 4)),
        row("make book", (first.seconds, bench.SECONDS), first.seconds / bench.SECONDS, "s", how, most=1.0),
        row("peak memory of make book", (first.peak, before.peak), first.peak, "GiB", how, most=bench.MEMORY),
        row(
            "second build with nothing changed",
            (second.seconds, bench.AT_MOST),
            second.seconds / bench.AT_MOST,
            "s",
            "the published book",
            most=1.0,
        ),
    ]


def figure(quick: bool) -> list[Row]:
    import book as bench

    ci = bench.first_figure("ci")
    how = f"a new store, `dfl run {bench.CHAPTER}` until {bench.FIGURE}; ours at scale "
    if quick:
        return [row("time to first figure", (ci, ci), 1, "s", f"{how}ci")]
    more = bench.first_figure("quick")
    return [row("time to first figure", (ci, more), ci / more, "s", f"{how}ci, other at scale quick")]


def vocabulary(quick: bool) -> list[Row]:
    import vocabulary as bench

    medians, apart, sizes = bench.measure(*((8, 64, 1) if quick else (160, 768, 5)))
    other = "dense matrix" if "dense matrix" in medians else "sparse matrix"  # it wants 7 GiB
    ours, theirs = medians["gather"][1], medians[other][1]
    how = f"speed there and back; {sizes[0]:,} x {sizes[1]:,} tokens, {apart[other]:.0e} apart at most"
    return [row(f"vocabulary gather against the {other}", (ours, theirs), theirs / ours, "s", how)]


def joint(quick: bool) -> list[Row]:
    import joint_step as bench
    import numpy as np

    seconds, flops = bench.measure("blip-base", *((2, 1) if quick else (8, 15)))
    rows = []
    for way in ("one generator pass", "ours", seconds.ways[-1]):
        k = seconds.ways.index(way)
        own, apart = (1000 * float(np.median(seconds.of(step)[:, k])) for step in ("joint", "captioning"))
        apart += 1000 * float(np.median(seconds.of("generation")[:, k]))
        ratio, how = float(np.median(seconds.ratio[:, k])), f"time; FLOPs {flops.ratio[0, k]:.2f}"
        most = bench.AT_MOST if way == seconds.ways[-1] else 0.0
        rows.append(row(f"joint step against the sum, {way}", (own, apart), ratio, "ms", how, most=most))
    pair, bare = bench.alternating("blip-base", *((2, 1) if quick else (8, 15)))
    mini, paper = bench.flops_over_bare("blip-base", 2 if quick else 8)
    how = f"time of one thread; of U-Net, captioner and decoder; FLOPs {mini:.2f}, at the paper's sizes {paper:.2f}"
    both = [1000 * float(np.median(part)) for part in (pair, bare)]
    ratio, name = float(np.median(pair / bare)), "alternating pair of steps against its bare passes"
    rows.append(row(name, tuple(both), ratio, "ms", how, most=bench.AT_MOST_BARE))
    if quick:  # the published sizes are minutes whatever is asked of them
        return rows
    pair, bare = bench.alternating_published(rounds=2)
    how = "time of one thread; BLIP ViT-B and Stable Diffusion 1.4 by their sizes, random weights, one pair a step"
    both, ratio = [float(np.median(part)) for part in (pair, bare)], float(np.median(pair / bare))
    return [*rows, row(f"{name}, published sizes", tuple(both), ratio, "s", how, most=bench.AT_MOST_BARE)]


def captions(quick: bool) -> list[Row]:
    import captioning as bench

    images, rounds = (4, 1) if quick else (32, 3)
    rows = []
    for captioner in bench.CAPTIONERS:
        now, then = bench.measure(captioner, images, rounds)
        for k, kind in enumerate(("sampled, ten an image", "by beam search")):
            pair = [1000 * float(median(part[:, k])) / images for part in (now, then)]
            how = f"speed beside {bench.BEFORE}; {images} images, one thread, checkouts in turn"
            ratio, least = float(median(then[:, k] / now[:, k])), 0.0 if k else bench.AT_LEAST
            rows.append(row(f"captions {kind}, {captioner}", pair, ratio, "ms an image", how, least=least))
    return rows


def scores(quick: bool) -> list[Row]:
    import warnings

    import scoring as bench

    from dfl_utils.scores import image_sets
    from dfl_utils.world import data, profile

    warnings.filterwarnings("ignore", category=image_sets.RankDeficient)
    images, candidates, drawings, steps = (16, 4, 16, 10) if quick else (300, 10, 160, 50)
    world = profile.load("mini", num_inference_steps=steps)
    data.ensure(world)
    options = SimpleNamespace(images=images, candidates=candidates, drawings=drawings)
    generation, metrics = bench.measure(world, options)
    pair = sum(metrics.values()), generation["drawings"]
    how = f"time; {images} images x {candidates}, {steps} steps; drawings told from {drawings}"
    return [row("scores against the drawings", pair, pair[0] / pair[1], "s", how, most=bench.AT_MOST)]


def undrawn(quick: bool) -> list[Row]:
    import undrawn as bench

    images, drawn, steps, rounds = (2, 2, 5, 1) if quick else (16, bench.DRAWN, 50, 3)
    times = bench.measure(images, drawn, steps, rounds)
    how = f"speed; {images} images x {bench.CANDIDATES} captions against drawing {drawn} of them, {steps} steps"
    return [
        row(
            f"captions judged by the loss at {name} against drawn",
            (median(times[name]), median(times["drawing"])),
            ratio,
            "ms of the processor a caption",
            how,
            bench.AT_LEAST if name == "one timestep" else 0.0,
        )
        for name, ratio in bench.speeds(times).items()
    ]


def forecasts(quick: bool) -> list[Row]:
    import forecast as bench

    found, bounds = bench.measure(quick), (1 - bench.WITHIN, 1 + bench.WITHIN)
    return [
        row(f"cost of {name}", pair, pair[0] / pair[1], "s", "predicted by `dfl cost --here` against taken", *bounds)
        for name, pair in found.items()
    ]


GROUPS: dict[str, Callable[[bool], list[Row]]] = {
    "loop": loop,
    "processes": processes,
    "scaling": scaling,
    "forecasts": forecasts,
    "vocabulary": vocabulary,
    "joint": joint,
    "captions": captions,
    "scores": scores,
    "undrawn": undrawn,
    "figure": figure,
    "builds": builds,
}


def stamp() -> str:
    """The day, the machine and torch."""
    import torch

    from dfl_utils.store import provenance

    found = provenance.machine()
    card = "" if found["gpu"] == "none" else f"{found['gpu']}, "
    return f"{date.today():%d %B %Y}, {card}{found['cpu']}, {found['cores']} cores, torch {torch.__version__}"


def write(place: Path, rows: list[Row]) -> None:
    """The table, atomically."""
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_suffix(".partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    partial.replace(place)


def measured(folder: Path, name: str, quick: bool) -> bool:
    """Run one group in an interpreter of its own, unless its rows are there; whether they are there then."""
    if (folder / f"{name}.json").is_file():
        print(f"{name}: measured before", flush=True)
        return True
    began = time.perf_counter()
    command = [sys.executable, __file__, "--folder", str(folder), "--only", name, *["--quick"] * quick]
    failed = subprocess.run(command, check=False).returncode
    print(f"{name}: {'failed' if failed else 'done'} in {time.perf_counter() - began:.0f} s", flush=True)
    return not failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny settings: shows that all works; writes no results")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured")
    parser.add_argument("--folder", type=Path, help="of the rows; default _build/benchmarks or _build/benchmarks-quick")
    parser.add_argument("--only", choices=GROUPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = (options.folder or (FOLDER.with_name("benchmarks-quick") if options.quick else FOLDER)).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if options.only:
        rows, place = GROUPS[options.only](options.quick), folder / f"{options.only}.json"
        rows = [one | {"note": f"{one['note']}; {stamp()}"} for one in rows]
        place.with_suffix(".partial").write_text(json.dumps(rows, indent=1), encoding="utf-8")
        place.with_suffix(".partial").replace(place)
        return 0
    if options.fresh:
        for place in folder.glob("*.json"):
            place.unlink()
        shutil.rmtree(folder / "store", ignore_errors=True)
    done = [measured(folder, name, options.quick) for name in GROUPS]
    places = [folder / f"{name}.json" for name in GROUPS]
    rows = [one for place in places if place.is_file() for one in json.loads(place.read_text(encoding="utf-8"))]
    target = folder / TARGET.name if options.quick else TARGET
    if all(done):
        write(target, rows)
        print(f"written: {os.path.relpath(target)}")
    for one in rows:
        print(
            f"{one['name']:52}{one['ours']:10.2f}{one['other']:10.2f}{one['ratio']:8.2f} {one['unit']}; {one['note']}"
        )
    return 0 if all(done) else 1


if __name__ == "__main__":
    sys.exit(main())
