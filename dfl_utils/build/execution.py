"""One chapter executed by papermill, from its source, into a copy that knows what made it."""

import hashlib
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from dfl_utils.build import chapter as chapters
from dfl_utils.build import publish
from dfl_utils.build.chapter import BuildFailed, Scalar
from dfl_utils.store import processes, provenance, published_run
from dfl_utils.store.store import Ledger

# Seconds a cell may take before a hanging kernel is taken for dead; the long scales set no limit.
TIMEOUTS = {"ci": 600, "quick": 1800}
WHOLE = ".whole"  # in a folder of results: what the finished build was made of
START_TIMEOUT = 600  # seconds; the first kernels wait until their server has imported the libraries
PROMPT = "Show the values used for this build"


def folder(name: str) -> Path:
    """A folder of the build: `src` (executed copies), `running`, `run`, `results`, `html`; every rank has its own."""
    return provenance.ROOT / "_build" / processes.place().folder / name


def run_chapter(
    name: str,
    parameters: Mapping[str, Scalar] | None = None,
    scale: str | None = None,
    target: Path | None = None,
    results: Path | None = None,
    reuse: bool = False,
) -> Path:
    """Execute a chapter from its source and keep the executed copy.

    Args:
        name: the notebook's name without its suffix.
        parameters: values over those of the scale, checked before anything runs.
        scale: see `chapter.at_scale`; None starts from the chapter's defaults.
        target: where the copy goes; default `_build/run/<name>.ipynb`.
        results: folder of the chapter's numbers; default `_build/results/run`.
        reuse: leave a copy alone that the same files, parameters and packages made.

    Returns:
        The path of the executed copy.

    Raises:
        ValueError: unknown chapter, scale or parameter, or a value of another type.
        BuildFailed: a cell failed, after its traceback was printed.
    """
    source = chapters.find(name)
    values = chapters.at_scale(source, scale) if scale else {}
    values |= chapters.check(source, parameters or {})
    target = target or folder("run") / f"{name}.ipynb"
    results = results or folder("results") / "run"
    fingerprint = key(source, values, scale)
    if reuse and state(target, fingerprint, results) == "fresh":
        print(f"{name}: nothing has changed since it last ran", flush=True)
        return target
    print(f"{name}: running ...", flush=True)
    for suffix in (".csv", ".json", ".shards"):
        (results / f"{name}{suffix}").unlink(missing_ok=True)
    start = time.monotonic()
    notebook = _execute(source, values, results, TIMEOUTS.get(scale or ""))
    seconds = round(time.monotonic() - start, 1)
    publish.record_run(results, name, chapters.effective(source, values))
    saved = sorted(path.name for path in results.glob(f"{name}.*"))
    lines = [how for how, _ in Ledger.read(results / f"{name}.shards")]
    shards = {how: lines.count(how) for how in publish.ASKED}
    notebook.metadata["dfl"] = {
        "key": fingerprint,
        "scale": scale,
        "seconds": seconds,
        "results": saved,
        "shards": shards,
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(_presentable(notebook), target)
    (folder("running") / source.name).unlink(missing_ok=True)
    print(f"{name}: done in {seconds} s", flush=True)
    return target


def key(source: Path, values: Mapping[str, Scalar], scale: str | None) -> str:
    """What an executed chapter was made of, as `make` would ask: values, packages, and the ages of files.

    A copy of another key is executed anew, which costs no model's work where the run store has it.
    """
    parts = [dict(values), scale, _age(source), _ages(scale), provenance.versions()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def whole(scale: str) -> str:
    """What a build of all chapters at a scale is made of."""
    keys = [key(source, chapters.at_scale(source, scale), scale) for source in chapters.sources().values()]
    return hashlib.sha256(json.dumps(keys).encode()).hexdigest()


def is_whole(results: Path, scale: str) -> bool:
    """Whether a folder of results is that of a finished build of the tree as it is now."""
    mark = results / WHOLE
    return mark.is_file() and mark.read_text(encoding="utf-8") == whole(scale)


def _ages(scale: str | None) -> list[tuple[str, int, int]]:
    """Of everything that a chapter may read beside itself, but for data that is made here.

    Of results only where they are shown: a build at scale full writes them after its chapters have run.
    """
    root, made = provenance.ROOT, {"downloads", "world", "training"}
    data = []
    for folder, inner, names in os.walk(root / "data"):
        inner[:] = [name for name in inner if name not in made]
        data += [Path(folder, name) for name in names]
    package = (root / "dfl_utils").rglob("*.py")
    store = published_run.place()
    results = [*(root / "results").glob("*/*.*"), store, store / published_run.INDEX] if scale == "published" else []
    return [_age(path) for path in sorted({*package, *data, *results}) if path.exists()]


def _age(path: Path) -> tuple[str, int, int]:
    found = path.stat()
    return path.relative_to(provenance.ROOT).as_posix(), found.st_size, found.st_mtime_ns


def state(target: Path, fingerprint: str, results: Path) -> str:
    """What an executed copy is worth: `fresh`, or why it is not."""
    if not target.is_file():
        return "has not been run"
    metadata = nbformat.read(target, as_version=4).metadata
    if metadata.get("papermill", {}).get("exception"):
        return "failed when it last ran"
    made = metadata.get("dfl", {})
    if made.get("key") != fingerprint:
        return "has changed since it last ran"
    if not all((results / name).is_file() for name in made["results"]):
        return "has lost the numbers that it saved"
    return "fresh"


def _clean(source: Path) -> NotebookNode:
    """The chapter as if never run: no outputs, counts or traces of an earlier papermill run."""
    notebook = nbformat.read(source, as_version=4)
    notebook.metadata.pop("papermill", None)
    notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


def _execute(source: Path, values: Mapping[str, Scalar], results: Path, timeout: int | None) -> NotebookNode:
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from traitlets.config import Config

    from dfl_utils.build import kernels

    running = folder("running") / source.name
    running.parent.mkdir(parents=True, exist_ok=True)
    try:
        results.mkdir(parents=True, exist_ok=True)
        ledger = results / f"{source.stem}.shards"
        # Kernels run in the chapters' folder: what is named from here is named whole.
        named = {name: os.environ.get(name) for name in ("DFL_STORE", "DFL_PUBLISHED")}
        places = {name: str(Path(value).absolute()) for name, value in named.items() if value}
        variables = places | {"DFL_RESULTS": str(results), "DFL_CHAPTER": source.stem, "DFL_LEDGER": str(ledger)}
        with tempfile.TemporaryDirectory(prefix="dfl-") as sockets:
            return papermill.execute_notebook(
                _clean(source),
                running,
                parameters=dict(values),
                engine_name=kernels.ENGINE,
                kernel_name="python3",
                language="python",
                progress_bar=False,
                folder=source.parent,
                variables=variables,
                stderr_file=sys.stderr,
                start_timeout=START_TIMEOUT,
                execution_timeout=timeout,
                # Sockets of the file system: a chapter runs where there is no network at all, not even loopback.
                config=Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/kernel"}}),
            )
    except papermill.PapermillExecutionError as error:
        trace = "\n".join(error.traceback)
        print(trace if sys.stderr.isatty() else re.sub(r"\x1b\[[0-9;]*m", "", trace), file=sys.stderr)
        first = error.source.strip().splitlines()[0]
        what = f"{error.ename}: {error.evalue}".splitlines()[0]
        raise BuildFailed(f"Chapter {source.stem} failed in cell [{error.exec_count}] `{first}` with {what}") from error
    except CellTimeoutError as error:
        raise BuildFailed(f"A cell of chapter {source.stem} ran longer than {timeout} s.") from error
    except (DeadKernelError, RuntimeError) as error:
        dead = isinstance(error, DeadKernelError)
        what = "was killed, often for want of memory" if dead else f"failed ({error})"
        raise BuildFailed(f"The kernel of chapter {source.stem} {what}; see _build/running/{source.name}.") from error


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set environment variables for the processes started inside."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _presentable(notebook: NotebookNode) -> NotebookNode:
    """Fold the injected values, leave out stderr (the terminal showed it) and papermill's absolute paths."""
    for name in ("input_path", "output_path", "environment_variables"):
        notebook.metadata.get("papermill", {}).pop(name, None)
    for cell in notebook.cells:
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.metadata["tags"] = ["injected-parameters", "hide-input"]
            cell.metadata["mystnb"] = {"code_prompt_show": PROMPT}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook
