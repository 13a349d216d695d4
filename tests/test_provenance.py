"""What counts as a change of a number's makers, and what does not."""

import json
import platform

import pytest
from conftest import PARAMETERS, cell

from dfl_utils import provenance


def test_wording_and_layout_leave_the_code_hash(house):
    before = provenance.code_hash(["dfl_utils.loops", "dfl_utils.scores"])
    house.write(
        "dfl_utils/loops.py", "from dfl_utils import scores\ndef double(x):\n    'Two.'\n    return 2 * scores.same(x)"
    )
    house.write("dfl_utils/scores.py", "# why\ndef same(x):\n    return (x)\n")
    assert provenance.code_hash(["dfl_utils.scores", "dfl_utils.loops"]) == before


def test_a_changed_constant_changes_the_code_hash(house):
    before = provenance.code_hash(["dfl_utils.loops"])
    house.write(
        "dfl_utils/loops.py", "from dfl_utils import scores\n\n\ndef double(x):\n    return 3 * scores.same(x)\n"
    )
    assert provenance.code_hash(["dfl_utils.loops"]) != before


def test_a_string_that_is_no_docstring_counts(house):
    house.write("dfl_utils/scores.py", "def same(x):\n    x = 1\n    'text'\n    return x\n")
    before = provenance.code_hash(["dfl_utils.scores"])
    house.write("dfl_utils/scores.py", "def same(x):\n    x = 1\n    return x\n")
    assert provenance.code_hash(["dfl_utils.scores"]) != before


def test_dependencies_are_transitive_and_leave_out_presentation(house):
    chapter = house.root / "book/one.ipynb"
    assert provenance.dependencies(chapter) == ["dfl_utils", "dfl_utils.loops", "dfl_utils.scores"]
    assert "dfl_utils.plots" in provenance.dependencies(chapter, presentation=True)


def test_dependencies_see_relative_lazy_and_named_imports(house):
    house.write("dfl_utils/mini/__init__.py", "from . import scenes\n")
    house.write("dfl_utils/mini/scenes.py", "from ..scores import same\n")
    house.write("dfl_utils/lazy.py", "def f():\n    import dfl_utils.mini.scenes\n    return dfl_utils.mini.scenes\n")
    house.write("dfl_utils/named.py", "WRITER = 'dfl_utils.lazy:f'\n")
    expected = ["dfl_utils", "dfl_utils.lazy", "dfl_utils.mini", "dfl_utils.mini.scenes", "dfl_utils.scores"]
    assert provenance.dependencies(house.root / "dfl_utils/named.py") == expected
    assert provenance.dependencies("import numpy\nfrom dfl_utils.scores import same") == [
        "dfl_utils",
        "dfl_utils.scores",
    ]


def test_a_cell_that_only_draws_is_left_out_of_the_chapter_hash(house):
    numbers = cell("x = 1")
    drawing = {"mystnb": {"figure": {"name": "fig-x", "caption": "X"}}}
    before = provenance.chapter_hash(house.chapter(numbers, cell("plot(x)", **drawing)))
    assert provenance.chapter_hash(house.chapter(numbers, cell("plot(2 * x)", **drawing))) == before
    assert provenance.chapter_hash(house.chapter(cell("x = 1  # one"), cell("text", "markdown"))) == before
    assert provenance.chapter_hash(house.chapter(cell("x = 2"))) != before


@pytest.mark.parametrize("cells", [("y = {}",), ("rows['a'] = {}",), ("z = {}", "y = z"), ("def y():\n    return {}",)])
def test_a_cell_that_draws_counts_where_others_read_what_it_assigns(house, cells):
    drawing = {"mystnb": {"image": {"alt": "A line."}}}

    def value(number: int) -> str:
        drawn = [cell(source.format(number), **drawing) for source in cells]
        return provenance.chapter_hash(house.chapter(cell("rows = {}"), *drawn, cell("save(rows, y)")))

    assert value(1) != value(2)


def test_magics_and_broken_notebooks_are_named(house):
    with pytest.raises(ValueError, match="one is not plain Python at `%matplotlib inline`"):
        provenance.chapter_hash(house.chapter(cell("%matplotlib inline")))
    with pytest.raises(ValueError, match=r"one\.ipynb is not a notebook"):
        provenance.chapter_hash(house.write("book/one.ipynb", PARAMETERS))


def checkpoint(house, name="data/mini/clip", weights="weights"):
    house.write(f"{name}/model.safetensors", weights)
    house.write(f"{name}/config.json", "{}")
    provenance.checkpoint_hash.cache_clear()
    return house.root / name


def test_checkpoint_hash_covers_weights_and_configuration_only(house):
    before = provenance.checkpoint_hash(checkpoint(house))
    house.write("data/mini/clip/README.md", "a card")
    assert provenance.checkpoint_hash(checkpoint(house)) == before
    assert provenance.checkpoint_hash(checkpoint(house, weights="other")) != before
    with pytest.raises(FileNotFoundError, match=r"holds no \*\.safetensors"):
        provenance.checkpoint_hash(house.root / "book")


def test_checkpoint_hash_is_not_fooled_by_moved_content(house):
    house.write("a/x.json", "1")
    house.write("a/y.json", "2")
    house.write("b/x.json", "2")
    house.write("b/y.json", "1")
    assert provenance.files_hash(house.root / "a") != provenance.files_hash(house.root / "b")


def test_register_notes_the_place_in_the_repository_and_how(house, tmp_path_factory):
    provenance.register("clip", checkpoint(house))
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "model.safetensors").write_text("weights")
    provenance.register("generator", elsewhere, how="trained")
    assert provenance.used["clip"]["path"] == "data/mini/clip"
    assert provenance.used["generator"] == {
        "path": elsewhere.name,
        "sha256": provenance.checkpoint_hash(elsewhere),
        "how": "trained",
    }
    assert provenance.checkpoints() == provenance.used
    with pytest.raises(ValueError, match="'loaded' or 'trained', not 'found'"):
        provenance.register("clip", elsewhere, how="found")


def test_two_checkpoints_of_one_role_are_both_kept(house):
    provenance.register("captioner", "someone/blip-base")
    provenance.register("captioner", "someone/blip-base")
    assert list(provenance.used) == ["captioner"]
    provenance.register("captioner", "someone/blip2")
    paths = {name: entry["path"] for name, entry in provenance.used.items()}
    assert paths == {"captioner": "someone/blip2", "captioner blip-base": "someone/blip-base"}


def test_a_hub_id_may_be_registered_before_it_is_downloaded(house):
    provenance.register("clip", "someone/some-clip")
    assert provenance.used["clip"] == {"path": "someone/some-clip", "sha256": None, "how": "loaded"}


def test_data_hash_leaves_out_what_is_generated(house):
    house.write("data/paper/table1.csv", "1")
    before = provenance.data_hash()
    house.write("data/mini/world/captions.json", "{}")
    house.write("data/mini/training/state.safetensors", "x")
    assert provenance.data_hash() == before
    house.write("data/mini/quality.json", "{}")
    assert provenance.data_hash() != before


def test_versions_and_machine_name_no_host():
    assert provenance.versions()["python"] == platform.python_version()
    assert "torch" in provenance.versions()
    machine = provenance.machine()
    assert machine["cores"] >= 1 and machine["memory_gb"] > 0 and machine["cpu"] and machine["gpu"]
    assert platform.node() not in json.dumps(machine)


def test_the_packages_own_modules_resolve():
    chapter_side = provenance.dependencies("from dfl_utils import exhibits, book", presentation=True)
    assert {"dfl_utils.chapter", "dfl_utils.execution", "dfl_utils.provenance"} <= set(chapter_side)
    assert all(
        f"dfl_utils.{name}" not in provenance.dependencies("import dfl_utils.book") for name in provenance.RECORDERS
    )


def test_a_comprehensions_variable_is_not_assigned():
    import ast

    from dfl_utils import syntax

    tree = ast.parse("rows = [f(x) for x in xs]\nfor y in ys:\n    table[y] = {k: v for k, v in y}")
    assert syntax.assigned(tree) == {"rows", "y", "table"}
