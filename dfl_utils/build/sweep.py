"""`dfl sweep`: a chapter once for each combination of values, side by side on one page and in one table.

All runs share the run store; each keeps its executed copy and its rows in a folder of its own, and is not repeated.
"""

import argparse
import hashlib
import itertools
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path

import pandas as pd

from dfl_utils.build import chapter as chapters
from dfl_utils.build import ranges
from dfl_utils.build.chapter import BuildFailed, Scalar
from dfl_utils.exhibits import tidy

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>
:root {{ color-scheme: light dark }} body {{ font-family: sans-serif; margin: 1rem }} div {{ overflow-x: auto }}
table {{ border-collapse: collapse }} th, td {{ border-bottom: 1px solid #8888; padding: .3rem .6rem }}
th, td {{ text-align: left }}
[aria-label=rows] td {{ white-space: nowrap }}</style>
<h1>{title}</h1>
<h2>What each run answers</h2><div tabindex="0" role="region" aria-label="answers">{answers}</div>
<h2>All rows, side by side</h2><p>Value and 95 % interval; all numbers are in <a href="sweep.csv">sweep.csv</a>.</p>
<div tabindex="0" role="region" aria-label="rows">{rows}</div></html>
"""


@dataclass(frozen=True)
class Run:
    """One combination: the values that were asked for, and its folder."""

    values: Mapping[str, Scalar]
    folder: Path

    @property
    def name(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.values.items())


def plan(source: Path, asked: Sequence[tuple[str, str]], scale: str | None, root: Path) -> list[Run]:
    """The runs of a product of values, all of them checked.

    Args:
        source: the chapter.
        asked: parameters with their values as typed, separated by commas, or by semicolons where a value holds one.
        scale: as of `run_chapter`.
        root: the folder of their folders.

    Raises:
        ValueError: nothing asked for, a parameter named twice or one without a value, or what `dfl run` refuses.
    """
    names = [name for name, _ in asked]
    if not asked or len(set(names)) < len(names):
        raise ValueError("A sweep takes each parameter once, with all its values: -p TOP_P 0.5,0.9 -p SEED 0,1,2.")
    lists = [[text.strip() for text in typed.split(";" if ";" in typed else ",")] for _, typed in asked]
    for name, texts in zip(names, lists, strict=True):
        if "" in texts or len(set(texts)) < len(texts):
            raise ValueError(f"Parameter {name} has an empty value or one twice: write it as 0.5,0.7,0.9.")
    runs = []
    for texts in itertools.product(*lists):
        values = chapters.check(source, dict(zip(names, texts, strict=True)), typed=True)
        ranges.check(source.stem, chapters.effective(source, chapters.at_scale(source, scale or "published") | values))
        runs.append(Run(values, root / _folder(values, scale)))
    return runs


def _folder(values: Mapping[str, Scalar], scale: str | None) -> str:
    """A name of letters and digits that says the values, and differs where they do."""
    said = " ".join([*(f"{name}={value}" for name, value in values.items()), *filter(None, [scale])])
    plain = re.sub(r"[^\w.=-]+", "_", said)
    return plain if plain == said.replace(" ", "_") else f"{plain[:60]}-{hashlib.sha256(said.encode()).hexdigest()[:8]}"


def main(arguments: argparse.Namespace) -> None:
    """Run what has not been run, and write the page and the table.

    Raises:
        ValueError: as `plan`, before anything runs.
        BuildFailed: some runs failed; the others are done and compared.
    """
    from dfl_utils.build import cost, execution  # these take seconds

    source, scale = chapters.find(arguments.chapter), arguments.scale
    root = execution.folder("sweep") / source.stem
    runs = plan(source, arguments.p, scale, root)
    defaults = chapters.at_scale(source, scale or "published")
    for run in runs:
        print(f"{run.name}: {cost.estimate(source.stem, chapters.effective(source, defaults | run.values))}")
    print(f"{len(runs)} runs, which share what they have in common", flush=True)
    failed = execute(source, runs, scale, arguments.jobs or min(len(runs), os.cpu_count() or 1))
    done = [run for run in runs if run.name not in failed]
    if done:
        print(f"side by side: {compare(source, done, scale, root)}")
    if failed:
        raise BuildFailed(f"{len(failed)} of {len(runs)} runs failed: {'; '.join(failed)}. The others are kept.")


def execute(source: Path, runs: Sequence[Run], scale: str | None, jobs: int) -> list[str]:
    """Execute runs, `jobs` at a time, each with its part of the cores; the names of those that failed."""
    from dfl_utils.build import execution, kernels

    failed = []

    def one(run: Run) -> None:
        target = run.folder / f"{source.stem}.ipynb"
        try:
            execution.run_chapter(source.stem, run.values, scale, target=target, results=run.folder, reuse=True)
        except BuildFailed as error:
            print(f"{run.name}: {error}", file=sys.stderr)
            failed.append(run.name)

    with execution.environment(**kernels.variables()):
        execution.side_by_side([partial(one, run) for run in runs], jobs)
    return failed


def compare(source: Path, runs: Sequence[Run], scale: str | None, root: Path) -> Path:
    """Write `sweep.csv`, a line a row and run, and `sweep.html`, a line a row and a column a run; return the page."""
    from dfl_utils.exhibits import answers

    defaults = chapters.at_scale(source, scale or "published")
    lines, parts = [], []
    for run in runs:
        copy = (run.folder / f"{source.stem}.ipynb").relative_to(root).as_posix()
        line = {name: escape(str(value)) for name, value in run.values.items()}
        saved, found = run.folder / f"{source.stem}.csv", None
        if saved.is_file():
            frame, whole = tidy.read(saved), chapters.effective(source, defaults | run.values)
            found = answers.of_run(source.stem, saved, int(whole.get("NUM_SEEDS", 0)))
            parts.append(frame.assign(run=run.name, **run.values))
        said = escape(found.found) if found else ""
        lines.append(line | {"answer": said, "executed copy": f'<a href="{escape(copy)}">notebook</a>'})
    rows = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=[*tidy.KEY, "run"])
    names = list(runs[0].values)
    rows[["run", *names, *(name for name in tidy.COLUMNS if name in rows)]].to_csv(root / "sweep.csv", index=False)
    table = pd.DataFrame(lines).to_html(index=False, escape=False, border=0)
    page = PAGE.format(title=escape(f"{source.stem}: {len(runs)} runs"), answers=table, rows=_beside(rows))
    (root / "sweep.html").write_text(page, encoding="utf-8")
    return root / "sweep.html"


def _beside(rows: pd.DataFrame) -> str:
    """HTML: a line a row of the chapter, a column a run."""
    if rows.empty:
        return "<p>This chapter saves no rows.</p>"
    digits = rows.metric.map(tidy.DIGITS).fillna(2).astype(int)
    cells = [tidy.written(e, d) for e, d in zip(tidy.estimates(rows), digits, strict=True)]
    places = rows[tidy.KEY].astype(object).where(rows[tidy.KEY].notna(), "").assign(run=rows.run, cell=cells)
    table = places.set_index([*tidy.KEY, "run"]).cell.unstack("run", fill_value="", sort=False).reset_index()
    table = table.loc[:, (table != "").any()].rename_axis(columns=None)  # the page would show it as a column
    return table.to_html(index=False, border=0)
