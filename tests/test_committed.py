"""What is committed is whole: chapters, results, benchmarks, the environment."""

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from dfl_utils.build import chapter, publish
from dfl_utils.exhibits import tidy
from dfl_utils.store import provenance, published_run

MACHINE_PATH = re.compile(r"(?<![\w.~$}/-])/(?:tmp|root|work|home|Users|mnt|scratch|private/var|var/folders)/[\w.-]+")
EXAMPLES = re.compile("/home/(anne?|bob)[.]?")  # of tests that look for such a path


# --- chapters ---------------------------------------------------------------------------------------------
def cells(name: str, kind: str = "code") -> list[dict]:
    notebook = json.loads(chapter.find(name).read_text(encoding="utf-8"))
    return [cell | {"text": "".join(cell["source"])} for cell in notebook["cells"] if cell["cell_type"] == kind]


@pytest.fixture(params=chapter.sources())
def name(request):
    return request.param


def test_a_chapter_is_committed_as_if_never_run_and_its_cells_are_short(name):
    assert name in chapter.pages()
    for cell in cells(name):
        assert not cell["outputs"] and not cell["execution_count"], cell["text"]
        assert sum(map(bool, map(str.strip, cell["text"].splitlines()))) <= 25, cell["text"]
    text = chapter.find(name).read_text(encoding="utf-8")
    assert '"papermill"' not in text and "injected-parameters" not in text
    assert not MACHINE_PATH.search("".join(cell["text"] for kind in ("code", "markdown") for cell in cells(name, kind)))


def test_a_chapter_says_what_each_parameter_means_and_every_scale_sets_known_ones(name):
    source = chapter.find(name)
    assert [key for key, parameter in chapter.parameters(source).items() if not parameter.comment] == []
    for scale in chapter.SCALES:
        values = chapter.at_scale(source, scale)
        if scale in ("published", "full"):
            assert values == {}, "the published sizes are the chapters' own"


def test_a_check_that_can_fail_withholds_what_stands_behind_it(name):
    code = "\n".join(cell["text"] for cell in cells(name))
    if "fails" in code and "exhibits.save(" in code:
        assert re.search(r"exhibits\.save\([^)]*(failed=|\*\*of)", code), name


def test_every_figure_has_a_name_a_caption_and_an_alt_text(name):
    for cell in cells(name):
        mystnb = cell["metadata"].get("mystnb", {})
        if {"figure", "image"} & mystnb.keys():
            assert mystnb.get("image", {}).get("alt"), cell["text"]
            assert mystnb.get("figure", {}).get("name") and mystnb["figure"].get("caption"), cell["text"]


# --- every file -------------------------------------------------------------------------------------------
def texts_of(path: Path) -> Iterator[bytes]:
    """What a file says: all of it; of weights and shards what stands before their numbers, of packed ones of each."""
    content = path.read_bytes()
    if path.suffix != ".safetensors":
        yield content
    elif path.parent == published_run.place():
        yield from map(header, published_run.unpack(path).values())
    else:
        yield header(content)


def header(content: bytes) -> bytes:
    return content[8 : 8 + int.from_bytes(content[:8], "little")]


def test_no_file_names_a_folder_of_a_machine():
    names = provenance.git("ls-files", "-z").split("\0")
    files = [path for name in names if name and (path := provenance.ROOT / name).is_file()]
    assert len(files) > 300
    for path in files:
        found = {m[0] for text in texts_of(path) for m in MACHINE_PATH.finditer(text.decode("utf-8", errors="replace"))}
        found = {one for one in found if not (path.suffix == ".py" and EXAMPLES.fullmatch(one))}
        assert not found, path


# --- results ----------------------------------------------------------------------------------------------
def test_a_stamp_is_of_the_table_beside_it_and_every_row_is_valid():
    assert publish.table("mini", publish.stamp("mini"))
    assert (provenance.ROOT / "results" / "mini" / "stamp.json").stat().st_size <= 15_000
    for profile in ("mini", "ci"):
        assert len(tidy.read(provenance.ROOT / "results" / profile / "exhibits.csv")) > 0, profile


# --- pyproject.toml, environment.yml and constraints.txt ----------------------------------------------------
PROJECT = tomllib.loads((provenance.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
# What conda-forge calls otherwise.
CONDA_NAMES = {"matplotlib-base": "matplotlib"}


def bounds(lines: list[str]) -> dict[str, SpecifierSet]:
    requirements = map(Requirement, lines)
    return {canonicalize_name(CONDA_NAMES.get(item.name, item.name)): item.specifier for item in requirements}


def test_conda_installs_within_the_projects_bounds():
    conda = yaml.safe_load((provenance.ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    named = bounds([line for line in conda if isinstance(line, str) and line != "pip"])
    assert named.pop("python") == SpecifierSet(PROJECT["requires-python"])
    declared = bounds(PROJECT["dependencies"] + EXTRAS["book"])
    assert {name: declared.get(name) for name in named} == named


def test_the_pins_lie_within_the_projects_bounds_and_cover_them():
    lines = (provenance.ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {canonicalize_name(name): pin for name, _, pin in (line.partition("==") for line in lines if "==" in line)}
    wanted = bounds(PROJECT["dependencies"] + EXTRAS["book"] + EXTRAS["test"])
    assert {name: bound for name, bound in wanted.items() if not bound.contains(pins.get(name, "0"))} == {}
