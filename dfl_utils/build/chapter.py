"""A chapter of the book: where it lies, the parameters it takes, and what a scale sets them to."""

import ast
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from dfl_utils.store import provenance

SCALES = ("published", "ci", "quick", "full", "paper")
DEFAULTS = ("published", "full")  # scales at which every parameter keeps its default


class BuildFailed(RuntimeError):
    """A chapter failed, or the rendering of the book did; the message is one sentence."""


Scalar = bool | int | float | str | None


@dataclass(frozen=True)
class Parameter:
    """One line of a chapter's `parameters` cell: the published value and the comment behind it."""

    default: Scalar
    comment: str = ""

    def check(self, value: object) -> Scalar:
        """Return `value` as the default's type; ValueError where it is of another."""
        if isinstance(self.default, float) and type(value) is int:
            return float(value)
        if type(value) is type(self.default) or (self.default is None and isinstance(value, Scalar)):
            return value
        kind = "any scalar" if self.default is None else type(self.default).__name__
        raise ValueError(f"takes {kind}, not {value!r}")

    def parse(self, text: str) -> Scalar:
        """Read a value typed on the command line, by the default's type: `010` is ten, and `1:30` is no number."""
        if self.default is None:
            return next((read for kind in (bool, int, float) if (read := _read(kind, text)) is not None), text)
        value = _read(type(self.default), text)
        if value is None:
            raise ValueError(f"takes {type(self.default).__name__}, not {text!r}")
        return value


def _read(kind: type, text: str) -> Scalar:
    """A text as a value of that type; None where it is none."""
    if kind is str:
        return text
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower())
    if kind is int and not re.fullmatch(r"[+-]?[0-9]+", text):  # `int` also takes `1_0` and blanks
        return None
    try:
        return kind(text)
    except ValueError:
        return None


def pages() -> list[str]:
    """Names of the pages in `_toc.yml`, in reading order."""
    return list(_pages((provenance.ROOT / "_toc.yml").read_text(encoding="utf-8")))


@cache  # asked for every parameter of every chapter
def _pages(text: str) -> tuple[str, ...]:
    toc = yaml.safe_load(text)
    return (toc["root"], *_files([toc]))


def _files(entries: list[dict]) -> Iterator[str]:
    for entry in entries:
        if "file" in entry:
            yield entry["file"]
        for key in ("parts", "chapters", "sections"):
            yield from _files(entry.get(key, []))


def sources() -> dict[str, Path]:
    """Every chapter notebook of `book/` by its name, in the order of the table of contents."""
    order = {name: place for place, name in enumerate(pages())}
    paths = sorted((provenance.ROOT / "book").glob("*.ipynb"))
    return {path.stem: path for path in sorted(paths, key=lambda path: order.get(path.stem, len(order)))}


def find(name: str) -> Path:
    """The notebook of one chapter, by its name or its path; ValueError names the chapters there are."""
    known = sources()
    stem = Path(name).stem if name.endswith(".ipynb") else name
    if stem not in known:
        raise ValueError(f"There is no chapter {name}; the book has {', '.join(known) or 'none yet'}.")
    return known[stem]


def parameters(path: Path) -> dict[str, Parameter]:
    """Read a chapter's one cell tagged `parameters`: ALL_CAPS names with plain scalars, nothing else.

    Raises:
        ValueError: one sentence, for no such cell, several, or anything in it that is not such a line.
    """
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    if len(tagged) != 1 or tagged[0]["cell_type"] != "code":
        raise ValueError(f"Chapter {path.stem} needs exactly one code cell tagged `parameters`, not {len(tagged)}.")
    text = "".join(tagged[0]["source"])
    lines = text.splitlines()
    found = {}
    try:
        assignments = ast.parse(text).body
    except SyntaxError as error:
        line = (error.text or "").strip()
        raise ValueError(
            f"The parameters cell of chapter {path.stem} is not plain Python at `{line}`: {error.msg}; "
            "IPython magics do not run."
        ) from error
    for node in assignments:
        name, value = _assignment(node, path.stem)
        comment = lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode().strip().lstrip("# ")
        found[name] = Parameter(value, comment)
    return found


def _assignment(node: ast.stmt, chapter: str) -> tuple[str, Scalar]:
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    try:
        (target,) = targets
        name, value = target.id, ast.literal_eval(node.value)
    except (AttributeError, ValueError, TypeError):
        name, value = "", []
    if not name.isupper() or not isinstance(value, Scalar):
        line = ast.unparse(node).splitlines()[0]
        raise ValueError(f"Chapter {chapter}: `{line}` in the parameters cell is not an ALL_CAPS name with a scalar.")
    return name, value


def check(path: Path, values: Mapping[str, object], typed: bool = False) -> dict[str, Scalar]:
    """Check values against a chapter's parameters before anything runs.

    Args:
        path: the chapter's notebook.
        values: new values by parameter name.
        typed: the values are text from a command line, to be read as the default's type.

    Raises:
        ValueError: one sentence that names the parameter, the chapter and the names it knows.
    """
    known = parameters(path)
    checked = {}
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"Chapter {path.stem} has no parameter {name}; it knows {', '.join(sorted(known))}.")
        try:
            checked[name] = known[name].parse(value) if typed else known[name].check(value)
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
    for name in table.keys() - {"common"}:
        if name not in sources():
            raise ValueError(f"params/{file.name} sets parameters of {name}, which is no chapter of the book.")
    common = {name: value for name, value in (table.get("common") or {}).items() if name in parameters(path)}
    return check(path, common | (table.get(path.stem) or {}))


def effective(path: Path, values: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Every parameter of a chapter: its default, or the value that was set."""
    return {name: values.get(name, parameter.default) for name, parameter in parameters(path).items()}
