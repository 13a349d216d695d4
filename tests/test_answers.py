"""Answers: which words are said is computed from rows, and no page says another number than the published rows."""

import re

import numpy as np
import pandas as pd
import pytest

from dfl_utils.build import chapter, front
from dfl_utils.exhibits import answers, paper, scoreboard, tidy
from dfl_utils.scores.ranking import Estimate
from dfl_utils.store import provenance

NAN = float("nan")
GAIN = {"exhibit": "table1", "dataset": "nocaps", "split": "overall", "method": "clip gain", "metric": "CIDEr"}


def asked(low: float, value: float, high: float, **entry) -> answers.Fact:
    """The fact that one row gives, with the words better, worse and unclear."""
    rows = [
        tidy.row("table1", ("nocaps", "overall"), "clip gain", "CIDEr", Estimate(value, low, high, 30), published=8.4)
    ]
    words = {"yes": "better by {by}", "no": "worse by {by}", "unclear": "unclear, {by}"}
    return answers._fact(pd.DataFrame(rows, columns=tidy.COLUMNS), (), row=GAIN, unit=" %", **words | entry)


@pytest.mark.parametrize(
    ("low", "value", "high", "entry", "sentence", "standing", "smallest"),
    [
        (24.8, 28.9, 33.3, {}, "better by 28.9 % (24.8 to 33.3)", "larger", "4.2 %"),
        (-5.0, -3.0, -1.0, {}, "worse by 3.0 % (1.0 to 5.0)", "contradicts", "2.0 %"),
        (-1.0, 1.0, 3.0, {}, "unclear, +1.0 % (-1.0 to +3.0)", "smaller", "2.0 %"),
        (1.0, 2.0, 3.0, {"flip": True}, "worse by 2.0 % (1.0 to 3.0)", "agrees", "1.0 %"),  # the paper's turns, too
        (9.0, 9.5, 10.0, {"expects": "above"}, "better by 9.5 % (9.0 to 10.0)", "agrees", ""),
        (8.0, 8.2, 8.3, {"expects": "about"}, "worse by 8.2 % (8.0 to 8.3)", "smaller", ""),
        (8.0, 8.2, 8.5, {"expects": "about"}, "better by 8.2 % (8.0 to 8.5)", "agrees", ""),
    ],
)
def test_the_words_follow_the_interval(low, value, high, entry, sentence, standing, smallest):
    fact = asked(low, value, high, **entry)
    if entry.get("flip"):
        standing = "smaller"  # ours falls by 1 to 3 where the paper's falls by 8.4
    assert (fact.sentence.replace("\u00a0", " "), fact.standing, fact.smallest) == (sentence, standing, smallest)


@pytest.mark.parametrize(
    ("low", "high", "published", "sized", "said"),
    [
        (1, 3, 2, True, "agrees"),
        (1, 3, 4, True, "smaller"),
        (-1, 3, 2, True, "cannot tell"),
        (-1, 1, 2, True, "smaller"),
        (-3, -1, 2, True, "contradicts"),
        (-3, -1, -0.5, True, "larger"),
        (0.1, 0.2, 1, False, "agrees"),
        (NAN, NAN, 1, True, ""),
        (1, 2, NAN, True, ""),
    ],
)
def test_how_an_interval_stands_to_the_papers_number(low, high, published, sized, said):
    assert paper.standing(low, high, published, sized) == said


def test_where_the_papers_number_would_not_show_it_is_said_how_many_images_would_do():
    """An interval twice as wide as 8.4 on either side needs four times the 30 images."""
    one = answers.Answer("models", "", "", (asked(-12.0, 4.8, 21.6),), ("", ""))
    assert one.sure == "n = 30 images; visible from 16.8 %; the paper's would be from about n = 120, 4.0 times the work"
    visible = answers.Answer("models", "", "", (asked(1.0, 5.0, 9.0),), ("", ""))
    assert "the paper's" not in visible.sure


def test_a_run_without_the_row_says_so():
    rows = pd.DataFrame(columns=tidy.COLUMNS)
    one = answers.answer("finding_caption", rows)
    assert one.found == "Not in this run." and one.sure == "not measured in this run"
    assert answers.answer("world", rows) is None


def test_an_answer_behind_a_failed_check_is_withheld(tmp_path, monkeypatch):
    """In what a run prints, and in what a published run says of itself."""
    monkeypatch.setenv("DFL_RESULTS", str(tmp_path))
    rows = [tidy.row("table1", ("nocaps", "overall"), "clip gain", "CIDEr", Estimate(28.9, 24.8, 33.3, 300))]
    rows += [tidy.row("figure3", ("nocaps", "overall"), "dino trend", "CIDEr", Estimate(0.4, 0.3, 0.5, 300))]
    frame, cost = pd.DataFrame(rows, columns=tidy.COLUMNS), {"seconds": 1.0, "model_calls": 1}
    for failed, first, second in ((["clip"], False, True), (["dino"], True, False), ([paper.ALL], False, False)):
        one = answers.of_run("finding_caption", tidy.save("finding_caption", frame, cost, failed))
        assert (one.said == "Yes", one.sure == "no verdict") == (first, not first)
        assert one.found.startswith("Yes: " if first else "Withheld, since a sanity check failed")
        assert ("by DINO, too" in one.found) == second and "nan" not in one.found


def test_every_question_is_a_chapters_and_every_row_was_published():
    published = answers.published()
    assert set(published) <= set(chapter.sources())
    for name, one in published.items():
        text = chapter.find(name).read_text(encoding="utf-8")
        assert all(fact.sentence for fact in one.facts), name
        assert f'exhibits.answer(\\"{name}\\")' in text and "exhibits.save(" in text
        assert all(len(line) < 600 for line in one.lines().values())
        assert "<script" not in one._repr_html_() and f'href="#{one.table[0]}"' in one._repr_html_()


def test_readme_says_what_the_published_rows_say():
    text = (provenance.ROOT / "README.md").read_text(encoding="utf-8")
    assert text == front.filled(text, front.IN_README), "write it anew: dfl answers"
    first = answers.published()["finding_caption"].facts[0].estimate
    rows = tidy.read(provenance.ROOT / "results/mini/exhibits.csv")
    row = rows[np.logical_and.reduce([rows[name] == value for name, value in GAIN.items()])].iloc[0]
    assert (first.value, first.low, first.high, first.n) == (row.value, row.low, row.high, row.n)
    assert f"{row.value:.1f}\u00a0%\u00a0({row.low:.1f}\u00a0to\u00a0{row.high:.1f})" in text


def test_no_number_of_a_filled_page_is_typed():
    for page in (provenance.ROOT / "book").glob("*.md"):
        for found in front.PART.finditer(page.read_text(encoding="utf-8")):
            assert not re.search(r"\d", found[0].removeprefix(found[1])), page


def test_a_claim_has_the_verdict_of_its_interval():
    def made(exhibit, method, metric, value, low, high, published=NAN):
        return tidy.row(
            exhibit, ("nocaps", "overall"), method, metric, Estimate(value, low, high, 30), published=published
        )

    rows = [
        made("table1", "clip gain", "CIDEr", 28.9, 24.8, 33.3, 8.4),
        made("table1", "authors clip gain", "CIDEr", 28.9, 24.8, 33.3, 8.4),  # another way of decoding
        made("table1", "clip", "CIDEr", 270.0, 260.0, 280.0, 80.3),  # a level
        made("figure3", "clip trend", "CIDEr", 0.1, -0.1, 0.3, 1.0),
        made("table8", "BLIP + aMUSEd gain", "CIDEr", 1.0, 0.5, 1.5),  # the paper's of LAFITE: 100 (77.4 - 74.1) / 74.1
    ]
    lines = scoreboard.claims(pd.DataFrame(rows, columns=tidy.COLUMNS))
    ran = lines[lines.verdict != "not run"]
    assert [*zip(ran.exhibit, ran.paper, ran.verdict, strict=True)] == [
        ("figure3", "gets better", "cannot tell"),
        ("table1", "+8.4 %", "larger"),
        ("table8", "+4.5 %", "smaller"),
    ]
    assert set(lines[lines.verdict == "not run"].metric) >= {"SPICE"}
    assert scoreboard.counts(ran) == "1 smaller, 1 larger, 1 cannot tell"
    failed = {"table1": ["dino", "clip"], "table8": ["BLIP-2"]}
    lines = scoreboard.claims(pd.DataFrame(rows, columns=tidy.COLUMNS), failed)
    assert lines[lines.verdict != "not run"].verdict.tolist() == ["cannot tell", "withheld", "smaller"]


def test_the_scoreboard_names_pages_that_there_are_and_every_verdict_it_explains():
    items = scoreboard.contents()
    assert {item.page for item in items} - {""} <= set(chapter.pages())
    assert {item.state for item in items} == {"measured", "shown", "discussed", "not run"}
    lines = scoreboard.claims(tidy.read(provenance.ROOT / "results/mini/exhibits.csv"))
    assert set(lines.verdict) <= set(scoreboard.VERDICTS)
    page = (provenance.ROOT / "book/scoreboard.md").read_text(encoding="utf-8")
    assert all(f"| {verdict} |" in page for verdict in scoreboard.VERDICTS)
    board = front.filled(page)
    assert board.count("<tr>") == 2 + len(items) + len(lines) and board.count(' id="claims"') == 1


def test_a_table_keeps_intervals_whole_and_says_what_a_verdict_is():
    table = pd.DataFrame({"gain, %": [Estimate(2, 1, 3, 30)], "same direction?": ["not visible"], "n": [30]})
    assert tidy.markdown("tab-a", "A table.", table).splitlines()[5] == (
        "| 2.0\u00a0(1.0\u00a0to\u00a03.0) | [not visible]{.verdict .not-visible} | 30  |"
    )
