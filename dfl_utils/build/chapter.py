"""A chapter of the book: where it lies, the parameters it takes, and what a scale sets them to."""

import ast
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import yaml
from sphinx_external_toc.parsing import parse_toc_yaml

from dfl_utils.store import provenance

SCALES = ("published", "ci", "quick", "full", "paper")
DEFAULTS = ("published", "full")  # scales at which every parameter keeps its default


class BuildFailed(RuntimeError):
    """A chapter failed, or the rendering of the book did; the message is one sentence."""


Scalar = bool | int | float | str


@dataclass(frozen=True)
class Parameter:
    """One line of a chapter's `parameters` cell: the published value and the comment behind it."""

    default: Scalar
    comment: str = ""

    def check(self, value: object, typed: bool = False) -> Scalar:
        """A value as the default's type, a text from a command line read as Python; ValueError of another type."""
        if typed and isinstance(self.default, bool):
            value = {"true": True, "false": False}.get(str(value).lower(), value)
        elif typed and not isinstance(self.default, str):
            with suppress(ValueError, SyntaxError):  # or it stays a text, which is of another type
                value = ast.literal_eval(value)
        if isinstance(self.default, float) and type(value) is int:
            return float(value)
        if type(value) is not type(self.default):
            raise ValueError(f"takes {type(self.default).__name__}, not {value!r}")
        return value


def pages() -> list[str]:
    """Names of the pages in `_toc.yml`, in reading order."""
    return list(parse_toc_yaml(provenance.ROOT / "_toc.yml"))


def sources() -> dict[str, Path]:
    """Every chapter notebook of `book/` by its name, in the order of the table of contents."""
    order = {name: place for place, name in enumerate(pages())}
    paths = sorted((provenance.ROOT / "book").glob("*.ipynb"))
    return {path.stem: path for path in sorted(paths, key=lambda path: order.get(path.stem, len(order)))}


def find(name: str) -> Path:
    """The notebook of one chapter, by its name or its path; ValueError names the chapters there are."""
    known, stem = sources(), Path(name).name.removesuffix(".ipynb")
    if stem not in known:
        raise ValueError(f"There is no chapter {name}; the book has {', '.join(known) or 'none yet'}.")
    return known[stem]


def parameters(path: Path) -> dict[str, Parameter]:
    """Read a chapter's one cell tagged `parameters`: ALL_CAPS names with plain scalars, nothing else, or ValueError."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    tagged = ["".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    if len(tagged) != 1:
        raise ValueError(f"Chapter {path.stem} needs exactly one code cell tagged `parameters`, not {len(tagged)}.")
    lines, found = tagged[0].splitlines(), {}
    try:
        for node in ast.parse(tagged[0]).body:
            name, value = node.targets[0].id, ast.literal_eval(node.value)
            if not name.isupper() or not isinstance(value, Scalar):
                raise ValueError(lines[node.lineno - 1])
            comment = lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode()
            found[name] = Parameter(value, comment.strip().lstrip("# "))
    except (SyntaxError, AttributeError, ValueError) as error:
        raise ValueError(
            f"The parameters cell of chapter {path.stem} holds lines like `SEED = 0  # what it is` alone ({error})."
        ) from error
    return found


def check(path: Path, values: Mapping[str, object], typed: bool = False) -> dict[str, Scalar]:
    """New values of a chapter's parameters, checked before anything runs; `typed` ones are text of a command line.

    ValueError: one sentence that names the parameter, the chapter and the names it knows.
    """
    known, checked = parameters(path), {}
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"Chapter {path.stem} has no parameter {name}; it knows {', '.join(sorted(known))}.")
        try:
            checked[name] = known[name].check(value, typed)
        except ValueError as error:
            raise ValueError(f"Parameter {name} of chapter {path.stem} {error}.") from error
    return checked


def at_scale(path: Path, scale: str) -> dict[str, Scalar]:
    """What `params/<scale>.yml` sets for a chapter: its own block, over the `common` names that it has.

    Nothing at the sizes that are published, which are the chapters' own.
    """
    if scale not in SCALES:
        raise ValueError(f"There is no scale {scale}; choose one of {', '.join(SCALES)}.")
    if scale in DEFAULTS:
        return {}
    file = provenance.ROOT / "params" / f"{scale}.yml"
    table = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    if unknown := table.keys() - {"common", *sources()}:
        raise ValueError(f"params/{file.name} sets parameters of {min(unknown)}, which is no chapter of the book.")
    common = {name: value for name, value in (table.get("common") or {}).items() if name in parameters(path)}
    return check(path, common | (table.get(path.stem) or {}))


def effective(path: Path, values: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Every parameter of a chapter: its default, or the value that was set."""
    return {name: values.get(name, parameter.default) for name, parameter in parameters(path).items()}
