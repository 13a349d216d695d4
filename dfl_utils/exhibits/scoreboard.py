"""The scoreboard: what the paper contains and claims, item by item, and how the published rows stand to it."""

from collections.abc import Collection, Iterable, Mapping
from functools import cache
from html import escape
from itertools import starmap
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pandas as pd
import yaml

from dfl_utils.exhibits import answers, paper, tidy
from dfl_utils.store import provenance

VERDICTS = ("agrees", "smaller", "larger", "contradicts", "cannot tell", "withheld", "not run")
STAND_INS = {"BLIP + aMUSEd": "BLIP + LAFITE"}  # ours for the paper's that could not be had
# Of these the exhibit has one claim, and rows beside it that read it in other ways.
LEVELS = {
    "tokenizer": ("BLIP", "identical share", "above"),
    "cost": ("joint finetuning", "times the original cost, about", "about"),
}
NAMES = {name: f"ranked by {name.upper()}" for name in paper.JUDGES} | {"cider": "ranked by CIDEr"}
NAMES |= {"topp": "smaller p", "topk": "top-k", "tempered": "tempered"}
LEFT_OUT = ("authors ", "blip-repo ", "paper ")  # methods that decode another way: they have a section of their own


class Item(NamedTuple):
    """An entry of `book/contents.yml`."""

    name: str
    shows: str
    state: str
    page: str
    label: str
    exhibit: str

    @property
    def link(self) -> str:
        """HTML: its name, linked to where it stands in the book."""
        place = f"{self.page}.html#{self.label}".rstrip("#")
        return f'<a href="{place}">{escape(self.name)}</a>' if self.page else escape(self.name)


def contents() -> list[Item]:
    """What the paper contains, in its order."""
    return list(_items((provenance.ROOT / "book" / "contents.yml").read_text(encoding="utf-8")))


@cache  # asked once a claim, and read by a parser in Python
def _items(text: str) -> tuple[Item, ...]:
    return tuple(starmap(Item, yaml.safe_load(text)))


def claims(rows: pd.DataFrame, failed: Mapping[str, Collection[str]] = MappingProxyType({})) -> pd.DataFrame:
    """Each number and direction that the paper claims, and ours beside it.

    Args:
        rows: of a run, see `tidy.validate`.
        failed: exhibit -> as `paper.withhold` takes it.

    Returns:
        A line a claim, with `exhibit`, `data`, `method`, `metric`, `paper` and `ours` as texts, `n` and `verdict`, one
        of `VERDICTS`. Gains of the paper's that no row of ours stands beside are "not run".
    """
    signed = rows[rows.method.str.split().str[-1].isin(paper.SIGNED) & rows.x.isna()]
    signed = signed[~signed.method.str.startswith(LEFT_OUT)]
    signed = signed.assign(paper=[_theirs(row) for row in signed.itertuples()])
    lines = [_line(row) for row in signed.itertuples() if not np.isnan(row.paper)]
    lines += [line for exhibit, level in LEVELS.items() for line in _levels(rows, exhibit, *level)]
    for line in lines:
        if paper.doubtful(line["method"], failed.get(line["exhibit"], ())):
            line["verdict"] = "withheld"
    return pd.DataFrame([*lines, *_not_run(signed)]).sort_values("order", kind="stable").drop(columns="order")


def _theirs(row) -> float:
    """The paper's improvement: printed, made of the levels that it prints, or the direction of Table 6."""
    if row.exhibit == "table6":
        return 1.0
    if row.exhibit != "table8":
        return row.paper
    name = row.method.removesuffix(" gain")
    try:
        return answers.of_levels("table8", STAND_INS.get(name, name), "baseline", row.metric, row.dataset, row.split)
    except ValueError:
        return np.nan


def _order(exhibit: str) -> int:
    return [item.exhibit for item in contents()].index(exhibit)


def _line(row) -> dict:
    sized = row.exhibit not in (*answers.SIGNS, "table6")
    unit = " %" if sized else ""
    return _texts(row) | {
        "paper": f"{row.paper:+.1f}{unit}" if sized else "gets better" if row.paper > 0 else "gets worse",
        "ours": tidy.written(tidy.estimate(row), 1 if sized else 2, "+"),
        "n": row.n,
        "verdict": paper.standing(row.low, row.high, row.paper, sized) or "cannot tell",
    }


def _texts(row) -> dict:
    place = " ".join(filter(None, [tidy.DATASETS[row.dataset] if row.dataset else "", row.split]))
    return {
        "order": _order(row.exhibit),
        "exhibit": row.exhibit,
        "data": place,
        "method": row.method,
        "metric": row.metric,
    }


def _levels(rows: pd.DataFrame, exhibit: str, method: str, metric: str, expects: str) -> Iterable[dict]:
    for row in rows[(rows.exhibit == exhibit) & (rows.method == method) & (rows.metric == metric)].itertuples():
        yield _texts(row) | {
            "paper": f"{'more than' if expects == 'above' else 'about'} {row.paper:g}",
            "ours": tidy.written(tidy.estimate(row)),
            "n": row.n,
            "verdict": answers.stands(tidy.estimate(row), row.paper, expects),
        }


def _not_run(signed: pd.DataFrame) -> Iterable[dict]:
    """The paper's printed gains of a metric that ours do not have."""
    for exhibit in ("table1", "table2", "table7"):
        printed = paper.table(exhibit)
        ran = set(signed[signed.exhibit == exhibit].metric)
        for row in printed[printed.method.str.endswith("gain") & ~printed.metric.isin(ran)].itertuples():
            yield _texts(row) | {"paper": f"{row.paper:+.1f} %", "ours": "", "n": "", "verdict": "not run"}


def counts(lines: pd.DataFrame) -> str:
    """Markdown: how many claims have each verdict."""
    number = lines.verdict.value_counts()
    return ", ".join(f"{number[verdict]} {verdict}" for verdict in VERDICTS if verdict in number)


def table_of_contents(lines: pd.DataFrame) -> str:
    """HTML: a line an item of the paper, with its state and how many of its claims have each verdict."""
    body = [
        [item.link, escape(item.shows), item.state, counts(lines[lines.exhibit == item.exhibit]) or ""]
        for item in contents()
    ]
    return _html("contents", ["in the paper", "what it shows", "state", "verdicts"], body)


def table_of_claims(lines: pd.DataFrame) -> str:
    """HTML: a line a claim."""
    links = {item.exhibit: item.link for item in contents() if item.exhibit}
    body = [
        [
            links[row.exhibit],
            escape(f"{_named(row.method)}: {row.metric}" + f", {row.data}" * bool(row.data)),
            f'<span class="verdict {row.verdict.replace(" ", "-")}">{row.verdict}</span>',
            escape(row.paper),
            f'<span class="interval">{row.ours}</span>',
            str(row.n),
        ]
        for row in lines.itertuples()
    ]
    return _html("claims", ["in the paper", "claim", "verdict", "the paper", "ours", "n"], body)


def _named(method: str) -> str:
    """A method in words: how candidates were ranked or sampled, and what is said of it."""
    first, _, rest = method.partition(" ")
    return f"{NAMES[first]}, {rest}" if first in NAMES else method


def _html(name: str, heads: list[str], body: list[list[str]]) -> str:
    """A table that a script makes sortable and filterable, and that is whole without it; no blank line inside."""
    head = "".join(f'<th scope="col">{text}</th>' for text in heads)
    lines = "\n".join("<tr>" + "".join(f"<td>{text}</td>" for text in line) + "</tr>" for line in body)
    return (
        f'<div class="pst-scrollable-table-container"><table class="table board" id="{name}">\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody>\n</table></div>"
    )
