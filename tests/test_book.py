"""Executed chapters and the build: nothing unknown runs, nothing failed or stale is rendered."""

import json
import os
import signal
import threading
import time
from types import SimpleNamespace

import nbformat
import pytest
from conftest import PARAMETERS, cell
from docutils import nodes
from docutils.utils import new_document

from dfl_utils.build import book, bookext, chapter, disclosure, execution, pdf, publish, renderer
from dfl_utils.build.chapter import BuildFailed

TAGGED = cell(PARAMETERS, tags=["parameters"])


def test_unknown_parameters_and_wrong_types_stop_before_anything_runs(house):
    with pytest.raises(ValueError, match="has no parameter NUM_IMAGE; it knows NUM_IMAGES, PROFILE, TOP_P."):
        book.run_chapter("one", {"NUM_IMAGE": 3})
    with pytest.raises(ValueError, match="Parameter NUM_IMAGES of chapter one takes int, not True."):
        book.run_chapter("one", {"NUM_IMAGES": True})
    assert not (house.root / "_build").exists()


def test_values_typed_on_a_command_line_take_the_defaults_type(house):
    typed = {"NUM_IMAGES": "-5", "TOP_P": "1e-1", "PROFILE": "010"}
    assert chapter.check(chapter.find("one"), typed, typed=True) == {"NUM_IMAGES": -5, "TOP_P": 0.1, "PROFILE": "010"}
    assert chapter.Parameter(True).check("False", typed=True) is False
    with pytest.raises(ValueError, match="Parameter NUM_IMAGES of chapter one takes int, not 5.5"):
        chapter.check(chapter.find("one"), {"NUM_IMAGES": "5.5"}, typed=True)
    for default, text in ((1, "1:30"), (1, "010"), (1, ""), (1.0, "1:30")):
        with pytest.raises(ValueError, match=f"takes {type(default).__name__}, not {text!r}"):
            chapter.Parameter(default).check(text, typed=True)
    (value,) = chapter.check(chapter.find("one"), {"TOP_P": 1}).values()  # a whole number serves as a float
    assert value == 1.0 and isinstance(value, float)


@pytest.mark.parametrize(
    ("cells", "sentence"),
    [
        ([TAGGED, TAGGED], "needs exactly one code cell tagged `parameters`, not 2"),
        ([cell("num_images = 3", tags=["parameters"])], r"The parameters cell of chapter one .*\(num_images = 3\)"),
        ([cell("SEED = -", tags=["parameters"])], "The parameters cell of chapter one holds lines like"),
    ],
)
def test_a_parameters_cell_holds_capitals_and_scalars_alone(house, cells, sentence):
    with pytest.raises(ValueError, match=sentence):
        chapter.parameters(house.chapter(*cells))


def test_a_scale_sets_a_chapters_own_block_over_the_common_one(house):
    house.write("params/ci.yml", "common: {PROFILE: paper, NUM_IMAGES: 8, OTHER: 1}\none: {NUM_IMAGES: 2}\n")
    assert chapter.at_scale(chapter.find("one"), "ci") == {"PROFILE": "paper", "NUM_IMAGES": 2}
    with pytest.raises(ValueError, match="There is no scale huge; choose one of published, ci, quick, full, paper"):
        chapter.at_scale(chapter.find("one"), "huge")
    house.write("params/ci.yml", "two: {NUM_IMAGES: 2}\n")
    with pytest.raises(ValueError, match=r"params/ci\.yml sets parameters of two, which is no chapter"):
        chapter.at_scale(chapter.find("one"), "ci")


def test_an_executed_copy_shows_its_values_and_no_path_of_this_machine(house, capsys):
    copy = book.run_chapter("one", {"TOP_P": 0.5}, scale="ci")
    notebook = nbformat.read(copy, as_version=4)
    _, _, injected, work, save = notebook.cells
    assert "NUM_IMAGES = 2" in injected.source and "TOP_P = 0.5" in injected.source
    assert injected.metadata.tags == ["injected-parameters", "hide-input"] and injected.metadata.mystnb.code_prompt_show
    assert work.outputs[0].text == "4 blue\n"
    assert "noise" in capsys.readouterr().err and save.outputs == []
    assert str(house.root) not in copy.read_text()
    record = json.loads((house.root / "_build/results/run/one.json").read_text())
    assert record["parameters"] == {"NUM_IMAGES": 2, "TOP_P": 0.5, "PROFILE": "mini"}
    assert notebook.metadata.dfl.scale == "ci" and set(notebook.metadata.dfl.shards.values()) == {0}


@pytest.fixture
def runs(house, monkeypatch):
    """Chapter one at scale ci, executed without a kernel; a list that grows with every execution."""
    seen = []

    def execute(source, values, results):
        seen.append(values)
        results.mkdir(parents=True, exist_ok=True)
        (results / "one.json").write_text("{}")
        return nbformat.v4.new_notebook(metadata={"papermill": {}})

    monkeypatch.setattr(execution, "_execute", execute)
    house.run = lambda: book.run_chapter(
        "one",
        scale="ci",
        target=house.root / "_build/src/one.ipynb",
        results=house.root / "_build/results/ci",
        reuse=True,
    )
    house.run()
    return seen


def test_a_chapter_is_not_run_again_for_what_it_cannot_read(house, runs):
    for file in ("README.md", "data/mini/world/captions.json", "tests/test_one.py", "_build/x.py"):
        house.write(file, "words")
    house.run()
    book.refuse_stale("ci")
    assert runs == [{"NUM_IMAGES": 2, "PROFILE": "mini"}]


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("dfl_utils/exhibits/plots.py", "COLOUR = 'red'\n", "has changed since it last ran"),
        ("data/mini/clip/config.json", "{}", "has changed since it last ran"),
        ("_build/results/ci/one.json", None, "has lost the numbers that it saved"),
        ("_build/src/one.ipynb", None, "has not been run, or failed"),
    ],
)
def test_a_stale_copy_is_refused_and_run_again(house, runs, file, text, reason):
    house.write(file, text) if text else (house.root / file).unlink()
    with pytest.raises(BuildFailed, match=rf"Chapter one {reason}; run `dfl book --scale ci` again"):
        book.render("ci")
    house.run()
    assert len(runs) == 2
    book.refuse_stale("ci")


def test_a_failing_chapter_shows_its_traceback_and_stops_the_build(house, monkeypatch, capsys):
    monkeypatch.setattr(book, "render", lambda scale: pytest.fail("rendered a failed chapter"))
    house.chapter(TAGGED, cell("ratio = NUM_IMAGES / 0\nprint(ratio)"))
    with pytest.raises(BuildFailed) as error:
        book.build("ci")
    sentence = "Chapter one failed in cell [3] `ratio = NUM_IMAGES / 0` with ZeroDivisionError: division by zero"
    assert str(error.value) == sentence
    assert "----> 1 ratio = NUM_IMAGES / 0" in capsys.readouterr().err
    assert not (house.root / "_build/src/one.ipynb").exists()


def test_a_build_that_is_stopped_stops_its_chapters(house):
    begin = "import os, pathlib, time\npathlib.Path(os.environ['DFL_CHAPTER']).touch()\ntime.sleep(600)"
    for name in ("one", "two", "three"):
        house.chapter(TAGGED, cell(begin), name=name)

    def interrupt():
        while len([name for name in ("one", "two", "three") if (house.root / "book" / name).exists()]) < 2:
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C does, to the main thread

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    threading.Thread(target=interrupt, daemon=True).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        book._execute("ci", 2, fresh=True)
    assert time.monotonic() - began < 120 and not list((house.root / "_build").glob("src/*.ipynb"))
    house.chapter(TAGGED, cell("print('again')"), name="one")
    assert execution.run_chapter("one").is_file()


def test_every_chapters_parameters_are_checked_before_the_first_runs(house, monkeypatch):
    monkeypatch.setattr(book, "run_chapter", lambda *arguments, **options: pytest.fail("ran a chapter"))
    house.chapter(cell("SEED = 1", tags=["parameters"]), name="two")
    house.write("params/quick.yml", "two: {SEEDS: 2}\n")
    with pytest.raises(ValueError, match="Chapter two has no parameter SEEDS; it knows SEED"):
        book.build("quick")


@pytest.mark.parametrize(
    ("shards", "said"),
    [
        ({"published": 3}, "Published run of 0123456, 2026-11-27, A CPU, 2 cores."),
        ({"published": 3, "made": 1}, "Computed here at the published sizes: the published run lacks some"),
    ],
)
def test_a_page_says_where_its_numbers_were_made(house, shards, said):
    made = {
        "commit": "0123456789",
        "date": "2026-11-27",
        "machine": {"cpu": "A CPU", "cores": 2},
        "chapters": {"one": {}},
    }
    house.write("results/mini/stamp.json", json.dumps(dict.fromkeys(publish.STAMPED) | made))
    assert bookext.made_where({"scale": "published", "shards": shards}).startswith(said)
    asked = bookext.made_where({"scale": "published", "shards": {}}, "one")
    assert asked.endswith("2 cores. Recompute some of it: <code>dfl verify one</code>.")
    assert bookext.made_where({"scale": "ci"}) == "Computed here at scale ci."


def test_a_gallery_takes_the_place_of_its_picture_in_the_figure(tmp_path):
    figure = nodes.figure("", nodes.image(uri="a.png", alt='six "games"'), nodes.caption("", "What it shows."))
    bundle = nodes.container("", nodes.container("", figure, mime_type="image/png"), nb_element="mime_bundle")
    bundle += nodes.container("", nodes.raw("", "<p>gallery</p>", format="html"), mime_type="text/html")
    doctree = new_document("page")
    doctree += bundle
    app = SimpleNamespace(builder=SimpleNamespace(format="html"), srcdir=tmp_path)
    bookext.show_galleries(app, doctree)
    assert not list(doctree.findall(nodes.image)) and len(bundle.children) == 1
    assert figure[0].astext() == '<div role="group" aria-label="six &quot;games&quot;"><p>gallery</p></div>'
    assert figure[1].astext() == "What it shows."


def test_a_plot_lies_in_the_page_in_place_of_its_file(tmp_path):
    (tmp_path / "a.svg").write_text('<?xml version="1.0"?><svg><text>0.5</text></svg>')
    doctree = new_document("page")
    doctree += nodes.figure("", nodes.image(uri="a.svg", alt="a line"))
    bookext.show_plots(SimpleNamespace(builder=SimpleNamespace(format="html"), srcdir=tmp_path), doctree)
    (plot,) = doctree.findall(nodes.raw)
    drawn = '<svg fill="currentColor"><text>0.5</text></svg>'
    assert plot.astext() == f'<div class="plot" role="img" aria-label="a line">{drawn}</div>'


def test_a_built_book_tells_nothing_of_the_machine(house, monkeypatch):
    """A chapter that runs, a page of prose; then the same with a page that says where it was made."""
    house.write("_toc.yml", "format: jb-book\nroot: index\nchapters:\n  - file: one\n")
    house.write("_config.yml", "title: T\nauthor: A\nonly_build_toc_files: true\nexecute: {execute_notebooks: 'off'}\n")
    index = book.build("ci")
    assert index.is_file() and "4 blue" in (index.parent / "one.html").read_text()
    site = disclosure.pages(index.parent)
    assert {"index.html", "one.html", "searchindex.js"} <= {path.name for path in site}
    assert not any(str(house.root) in path.read_text(errors="replace") for path in site)
    with monkeypatch.context() as patch:
        patch.setattr(renderer, "render", lambda *_, **__: pytest.fail("what had not changed was rendered again"))
        assert book.render("ci") == index
    copy_prose = book._copy_prose

    def copy_and_tell():
        copy_prose()
        with (book.folder("src") / "index.md").open("a") as page:
            page.write(f"Made in `{house.root}/book`.\n")

    monkeypatch.setattr(book, "_copy_prose", copy_and_tell)
    with pytest.raises(BuildFailed, match=f"index.* shows the path '{house.root}': print something"):
        book.render("ci")
    assert not (index.parent / book.MARK).exists()  # refused pages do not pass for rendered ones


def test_one_page_holds_all_articles_in_the_order_of_the_contents(house, tmp_path):
    with pytest.raises(ValueError, match="There are no pages to print: run `make book` first."):
        pdf.joined(tmp_path / "html")
    page = '<html><head>{head}</head><body><nav>x</nav><article class="bd-article">{text}</article></body></html>'
    house.write("html/index.html", page.format(head="<title>Book</title>", text="first"))
    house.write("html/one.html", page.format(head="<title>One</title>MathJax", text="second"))
    whole = pdf.joined(tmp_path / "html")
    assert whole.index("first") < whole.index("second") and "<nav>" not in whole
    assert whole.count("<head>") == 1 and "<head><title>Book</title>MathJax</head>" in whole
