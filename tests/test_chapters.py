"""What every chapter of the book keeps to."""

import json
import re

import pytest

from dfl_utils.build import chapter

NAMES = list(chapter.sources())
MACHINE_PATH = re.compile(r"(^|[^a-zA-Z./])/(tmp|root|work|home|Users)/")


def cells(name: str, kind: str = "code") -> list[dict]:
    notebook = json.loads(chapter.find(name).read_text(encoding="utf-8"))
    return [cell | {"text": "".join(cell["source"])} for cell in notebook["cells"] if cell["cell_type"] == kind]


@pytest.mark.parametrize("name", NAMES)
def test_a_chapter_is_committed_as_if_never_run(name):
    assert [cell["text"] for cell in cells(name) if cell["outputs"] or cell["execution_count"]] == []
    text = chapter.find(name).read_text(encoding="utf-8")
    assert '"papermill"' not in text and "injected-parameters" not in text
    assert not MACHINE_PATH.search("".join(cell["text"] for kind in ("code", "markdown") for cell in cells(name, kind)))


@pytest.mark.parametrize("name", NAMES)
def test_a_chapter_says_what_each_parameter_means(name):
    parameters = chapter.parameters(chapter.find(name))
    assert [key for key, parameter in parameters.items() if not parameter.comment] == []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", chapter.SCALES)
def test_every_scale_sets_known_parameters(name, scale):
    source = chapter.find(name)
    values = chapter.at_scale(source, scale)
    if scale in ("published", "full"):
        assert values == {}, "the published sizes are the chapters' own"


@pytest.mark.parametrize("name", NAMES)
def test_a_chapter_is_in_the_table_of_contents_and_its_cells_are_short(name):
    assert name in chapter.pages()
    assert [cell["text"] for cell in cells(name) if len(cell["text"].splitlines()) > 30] == []


def draws(cell):
    return {"figure", "image"} & cell["metadata"].get("mystnb", {}).keys()


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_has_a_name_a_caption_and_an_alt_text(name):
    for cell in filter(draws, cells(name)):
        mystnb = cell["metadata"]["mystnb"]
        assert mystnb.get("image", {}).get("alt"), cell["text"]
        assert mystnb.get("figure", {}).get("name") and mystnb["figure"].get("caption"), cell["text"]
