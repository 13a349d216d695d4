"""What README and the first pages say of the results, written from the published rows and never by hand.

A page names a part between two comments, `<!-- answers -->` and `<!-- /answers -->`; what is between them is replaced.
"""

import re
from collections.abc import Callable

import pandas as pd

from dfl_utils.build import publish
from dfl_utils.exhibits import answers, scoreboard, tidy
from dfl_utils.store import provenance

PART = re.compile(r"(<!-- (?P<name>[a-z]+)[^>]*-->\n).*?(<!-- /(?P=name) -->)", re.DOTALL)


def _answers(link: str) -> str:
    return answers.table(answers.published(), link)


def _board(link: str) -> str:
    lines = _claims()
    return "\n\n".join([scoreboard.table_of_contents(lines), "## Every claim", scoreboard.table_of_claims(lines)])


def _counts(link: str) -> str:
    lines = _claims()
    return f"Of {len(lines)} claims: {scoreboard.counts(lines)}."


def _claims() -> pd.DataFrame:
    made, failed = publish.stamp("mini"), {}
    for ran in made["chapters"].values():
        for exhibit in ran["exhibits"]:
            failed[exhibit] = [*failed.get(exhibit, ()), *ran.get("failed", ())]
    return scoreboard.claims(tidy.read(provenance.ROOT / "results" / "mini" / "exhibits.csv"), failed)


PARTS: dict[str, Callable[[str], str]] = {"answers": _answers, "board": _board, "counts": _counts}
IN_BOOK, IN_README = "{{doc}}`{0}`", "[`{0}`](book/{0}.ipynb)"


def filled(text: str, link: str = IN_BOOK) -> str:
    """A page with every part that it names written anew; `link` is how it refers to a chapter."""

    def part(found: re.Match) -> str:
        made = PARTS.get(found["name"])
        return f"{found[1]}\n{made(link)}\n\n{found[3]}" if made else found[0]

    return PART.sub(part, text)


def main(arguments: object = None) -> None:
    """`dfl answers`: write README's table anew."""
    readme = provenance.ROOT / "README.md"
    readme.write_text(filled(readme.read_text(encoding="utf-8"), IN_README), encoding="utf-8")
    print("README.md says what results/mini/exhibits.csv says")
