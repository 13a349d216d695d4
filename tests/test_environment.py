"""pyproject.toml, environment.yml and constraints.txt name one environment."""

import tomllib
from importlib.metadata import version

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from dfl_utils.store import provenance

PROJECT = tomllib.loads((provenance.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONDA = yaml.safe_load((provenance.ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
# What conda-forge calls otherwise.
CONDA_NAMES = {"matplotlib-base": "matplotlib"}


def bounds(lines: list[str]) -> dict[str, SpecifierSet]:
    requirements = map(Requirement, lines)
    return {canonicalize_name(CONDA_NAMES.get(item.name, item.name)): item.specifier for item in requirements}


def declared() -> dict[str, SpecifierSet]:
    return bounds(PROJECT["dependencies"] + PROJECT["optional-dependencies"]["book"])


def test_conda_installs_within_the_projects_bounds():
    lines = [line for line in CONDA if isinstance(line, str) and line != "pip" and not line.startswith("python=")]
    conda = bounds(lines)
    assert {name: declared().get(name) for name in conda} == conda


def test_conda_has_the_projects_python_and_leaves_the_rest_to_pip():
    (python,) = [line.partition("=")[2] for line in CONDA if str(line).startswith("python=")]
    assert SpecifierSet(PROJECT["requires-python"]).contains(f"{python}.0")
    assert CONDA[-1] == {"pip": ["-e .[book,test]"]} and "pip" in CONDA


def test_the_pins_lie_within_the_projects_bounds_and_cover_them():
    lines = (provenance.ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {canonicalize_name(name): pin for name, _, pin in (line.partition("==") for line in lines if "==" in line)}
    wanted = declared() | bounds(PROJECT["optional-dependencies"]["test"])
    assert {name: bound for name, bound in wanted.items() if not bound.contains(pins.get(name, "0"))} == {}


def test_what_is_installed_lies_within_the_bounds():
    assert {name: bound for name, bound in declared().items() if not bound.contains(version(name))} == {}
