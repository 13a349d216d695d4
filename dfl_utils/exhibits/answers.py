"""What a chapter answers, in four lines: the claim, what was found, how sure that is, and the table to look at.

Questions, claims and words lie in `book/questions.yml`; which of the words are said is computed from a chapter's rows.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from dfl_utils.exhibits import paper, tidy
from dfl_utils.exhibits.paper import doubtful
from dfl_utils.scores import intervals
from dfl_utils.scores.ranking import Estimate
from dfl_utils.store import provenance

WORDS = {
    "agrees": "agrees",
    "smaller": "is smaller",
    "larger": "is larger",
    "contradicts": "contradicts it",
    "cannot tell": "cannot tell from it",
}
SIGNS = ("figure3", "figure4", "figure9")  # of these the paper's text has a direction and no number
SAID = {"yes": "Yes", "no": "No", "unclear": "Cannot tell", "": "Not in this run"}
SAID["withheld"] = "Withheld, since a sanity check failed"
LATER = "Of the published run; this run's own answer takes its place when the last cell has run."


@dataclass(frozen=True)
class Fact:
    """One row that answers, and what is said of it."""

    of: str  # what n counts
    estimate: Estimate = Estimate(np.nan, np.nan, np.nan, 0)  # such where the run has no such row
    verdict: str = ""  # "yes", "no" or "unclear", "withheld" where a sanity check failed, and "" without a row
    sentence: str = ""  # what the verdict says, with the number
    standing: str = ""  # to the paper's number, see `paper.standing`
    theirs: str = ""  # the paper's number as it is written
    smallest: str = ""  # the smallest difference that would have been visible, as it is written; "" of a level
    needed: int = 0  # n from which the paper's number would be visible, see `intervals.shows_from`


@dataclass(frozen=True, repr=False)
class Answer:
    """A chapter's answer. It prints as four lines, and a page shows it as a list."""

    chapter: str
    question: str
    claim: str
    facts: tuple[Fact, ...]
    table: tuple[str, str]
    trainings: int = 0
    note: str = ""

    @property
    def said(self) -> str:
        """Yes, no or cannot tell, by the first fact."""
        return SAID[self.facts[0].verdict]

    @property
    def found(self) -> str:
        """What is said, and why, in a sentence."""
        parts = [fact.sentence for fact in self.facts if fact.sentence]
        return f"{self.said}: {'; '.join(parts)}." if parts else f"{self.said}."

    @property
    def beside(self) -> str:
        """The first fact's number in the paper, and how ours stands to it."""
        first = self.facts[0]
        if not first.theirs:
            return "no number"
        return f"{first.theirs}; ours {WORDS[first.standing]}" if first.standing else first.theirs

    @property
    def sure(self) -> str:
        """n, trainings, and the smallest difference that would have shown, of the first fact."""
        first = self.facts[0]
        if not first.sentence:
            return "no verdict" if first.verdict else "not measured in this run"
        parts = [f"n = {first.estimate.n:,} {first.of}"]
        parts += [f"{self.trainings} trainings" if self.trainings > 1 else "one training"] if self.trainings else []
        parts += [f"visible from {first.smallest}"] if first.smallest else []
        if first.needed > first.estimate.n:
            times = first.needed / first.estimate.n
            parts.append(f"the paper's would be from about n = {first.needed:,}, {times:.1f} times the work")
        return "; ".join(parts)

    def lines(self) -> dict[str, str]:
        """The four lines by their names."""
        return {
            "Claim": self.claim,
            "Found": f"{self.found} The paper: {self.beside}.",
            "How sure": f"{self.sure}; 95 % intervals.",
            "Table": f"{self.table[1]}, on the chapter's page.",
        }

    def __str__(self) -> str:
        return "\n".join(f"{name + ':':<10}{text}" for name, text in self.lines().items())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        shown = {name: escape(text, quote=False) for name, text in self.lines().items()}
        label, title = map(escape, self.table)
        shown["Table"] = f'<a href="#{label}">{title}</a>'
        items = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in shown.items())
        note = f"<p><small>{self.note}</small></p>" if self.note else ""
        return f'<div class="answer answer-{self.facts[0].verdict or "none"}"><dl>{items}</dl>{note}</div>'


@cache
def _read(path) -> dict[str, dict]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def questions() -> dict[str, dict]:
    """Chapter -> its entry of `book/questions.yml`, in the book's order."""
    path = provenance.ROOT / "book" / "questions.yml"
    return _read(path) if path.is_file() else {}


def answer(chapter: str, rows: pd.DataFrame, trainings: int = 0, failed: Collection[str] = ()) -> Answer | None:
    """What a chapter's rows answer.

    Args:
        chapter: the notebook's name without its suffix.
        rows: of a run, see `tidy.validate`; rows of other chapters do no harm.
        trainings: how many were averaged, where the chapter trains.
        failed: see `paper.withhold`.

    Returns:
        None of a chapter that asks nothing of the paper.
    """
    entry = questions().get(chapter)
    if entry is None:
        return None
    facts = tuple(_fact(rows, failed, **fact) for fact in entry["facts"])
    averaged = trainings if entry.get("trains") else 0
    return Answer(chapter, entry["question"], entry["claim"], facts, tuple(entry["table"]), averaged)


def of_run(chapter: str, path: Path, trainings: int = 0) -> Answer | None:
    """What the rows answer that a chapter saved as this CSV; see `answer` and `tidy.save`."""
    record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    return answer(chapter, tidy.read(path), trainings, record.get("failed", ()))


def _fact(
    rows: pd.DataFrame,
    failed: Collection[str],
    row: Mapping[str, str],
    unit: str = "",
    digits: int = 1,
    flip: bool = False,
    expects: str = "",
    of: str = "images",
    paper: tuple[str, ...] = (),
    **words: str,
) -> Fact:
    fits = np.logical_and.reduce([rows[name] == value for name, value in row.items()]) & rows.x.isna()
    if not fits.any():
        return Fact(of)
    one = rows[fits].iloc[0]
    change, published = tidy.estimate(one), _published(one, paper)
    if flip:
        change, published = _turned(change), -published
    sized = row["exhibit"] not in SIGNS
    theirs = _theirs(published, unit, expects, sized)
    if doubtful(one.method, failed):
        return Fact(of, change, "withheld", theirs=theirs)
    verdict = _verdict(change, published, expects)
    return Fact(
        of=of,
        estimate=change,
        verdict=verdict,
        sentence=words[verdict].format(by=_by(change, verdict, digits, unit, bool(expects))),
        standing=stands(change, published, expects, sized),
        theirs=theirs,
        smallest="" if expects else f"{intervals.smallest_effect(change):.{digits}f}{unit}",
        needed=(intervals.shows_from(published, change) or 0) if sized and not expects else 0,
    )


def _published(row: pd.Series, levels: tuple[str, ...]) -> float:
    """The paper's number beside a row: printed there, or the gain in per cent that two of its levels make."""
    if not levels:
        return float(row.paper)
    return of_levels(*levels, row.dataset, row["split"])


def of_levels(exhibit: str, after: str, before: str, metric: str, dataset: str, split: str) -> float:
    """The paper's gain in per cent where it prints two levels and no gain; ValueError where it lacks one of them."""
    place = {"dataset": dataset, "split": split, "metric": metric}
    new, old = (paper.number(exhibit, method=method, **place) for method in (after, before))
    return float(paper.gain_of_levels(new, old, metric))


def _turned(change: Estimate) -> Estimate:
    return Estimate(-change.value, -change.high, -change.low, change.n)


def _verdict(change: Estimate, published: float, expects: str) -> str:
    if expects == "about":
        return "yes" if change.low <= published <= change.high else "no"
    zero = published if expects else 0.0
    return "yes" if change.low > zero else "no" if change.high < zero else "unclear"


def stands(change: Estimate, published: float, expects: str = "", sized: bool = True) -> str:
    """`paper.standing` of an improvement, and of a level that is expected `above` the paper's number or `about` it."""
    if not expects:
        return paper.standing(change.low, change.high, published, sized)
    if expects == "above":
        return {"yes": "agrees", "no": "smaller", "unclear": "cannot tell"}[_verdict(change, published, expects)]
    return "larger" if change.low > published else "smaller" if change.high < published else "agrees"


def _theirs(published: float, unit: str, expects: str, sized: bool) -> str:
    if np.isnan(published):
        return ""
    if not sized:
        return "a rise" if published > 0 else "a fall"
    return {"above": "more than ", "about": "about "}.get(expects, "") + f"{published:.3g}{unit}"


def _by(change: Estimate, verdict: str, digits: int, unit: str, level: bool) -> str:
    """A number with its interval; what is said to be lower has no minus, what is not visible has its sign."""
    if verdict == "no" and not level:
        change = _turned(change)
    sign = "+" if verdict == "unclear" and not level else ""
    value, rest = tidy.written(change, digits, sign).split(" ", 1)
    return f"{value}{unit} {rest}".replace(" ", "\u00a0")  # no line ends inside


def published() -> dict[str, Answer]:
    """Chapter -> its answer by the published run."""
    folder = provenance.ROOT / "results" / "mini"
    rows = tidy.read(folder / "exhibits.csv")
    ran = json.loads((folder / "stamp.json").read_text(encoding="utf-8"))["chapters"]
    known = {name: {"parameters": {}} | ran.get(name, {}) for name in questions()}
    return {
        name: answer(name, rows, made["parameters"].get("NUM_SEEDS", 0), made.get("failed", ()))
        for name, made in known.items()
    }


def table(answers: Mapping[str, Answer], link: str) -> str:
    """Markdown: a line a question, with our answer, the paper's number, how sure, and the chapter.

    `link` is how a chapter is referred to, with its name in the place of {0}.
    """
    lines = [
        {
            "question": one.question,
            "our answer": f"**{one.said}**: {one.facts[0].sentence}".rstrip(": "),
            "the paper's number": one.beside,
            "how sure": one.sure,
            "chapter": link.format(one.chapter),
        }
        for one in answers.values()
    ]
    return pd.DataFrame(lines).to_markdown(index=False)
