"""One chapter executed by papermill, from its source, into a copy that knows what made it."""

import hashlib
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from dfl_utils.build import chapter as chapters
from dfl_utils.build import publish, ranges
from dfl_utils.build.chapter import BuildFailed, Scalar
from dfl_utils.exhibits import tidy
from dfl_utils.store import processes, provenance, published_run
from dfl_utils.store.store import ledger

START_TIMEOUT = 600  # seconds; the first kernels wait until their server has imported the libraries
PROMPT = "Show the values used for this build"


def folder(name: str) -> Path:
    """A folder of the build: `src` (executed copies), `run`, `results`, `store`, `html`; every rank has its own."""
    return provenance.ROOT / "_build" / processes.place().folder / name


def run_chapter(
    name: str,
    parameters: Mapping[str, Scalar] | None = None,
    scale: str | None = None,
    target: Path | None = None,
    results: Path | None = None,
    reuse: bool = False,
) -> Path:
    """Execute a chapter from its source, and return the path of the executed copy.

    `parameters` go over those of the scale, or of the chapter without one. The copy is `target`, by default
    `_build/run/<name>.ipynb`; `results` is the folder of the chapter's numbers, by default `_build/results/run`. With
    `reuse` a copy is left alone that the same files, parameters and packages made.
    ValueError: as `chapters.check` and `ranges.check`; BuildFailed: a cell failed, after its traceback was printed.
    """
    source = chapters.find(name)
    values = chapters.at_scale(source, scale) if scale else {}
    values |= chapters.check(source, parameters or {})
    ranges.check(name, chapters.effective(source, values))
    target, results = target or folder("run") / f"{name}.ipynb", results or folder("results") / "run"
    fingerprint = key(source, values, scale)
    if reuse and state(target, fingerprint, results) == "fresh":
        print(f"{name}: nothing has changed since it last ran", flush=True)
        return target
    print(f"{name}: running ...", flush=True)
    for suffix in (".csv", ".json", ".shards"):
        (results / f"{name}{suffix}").unlink(missing_ok=True)
    start, record = time.monotonic(), results / f"{name}.json"
    notebook = _execute(source, values, results)
    seconds = round(time.monotonic() - start, 1)
    if record.is_file():  # of a chapter that saved numbers
        saved = json.loads(record.read_text(encoding="utf-8"))
        tidy.write_json(saved | {"parameters": chapters.effective(source, values)}, record)
    lines = [how for how, _ in ledger(results / f"{name}.shards")]
    notebook.metadata["dfl"] = {
        "key": fingerprint,
        "scale": scale,
        "seconds": seconds,
        "results": sorted(path.name for path in results.glob(f"{name}.*")),
        "shards": {how: lines.count(how) for how in publish.ASKED},
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(_presentable(notebook), target)
    print(f"{name}: done in {seconds} s", flush=True)
    return target


def key(source: Path, values: Mapping[str, Scalar], scale: str | None) -> str:
    """What an executed chapter was made of, as `make` would ask: values, packages, and the ages of files.

    A copy of another key is executed anew, which costs no model's work where the run store has it.
    """
    parts = [dict(values), scale, _age(source), _ages(scale), provenance.versions()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _ages(scale: str | None) -> list[tuple[str, int, int]]:
    """Of everything that a chapter may read beside itself, but for data that is made here.

    Of results only where they are shown: a build at scale full writes them after its chapters have run.
    """
    root, made = provenance.ROOT, {"downloads", "world", "training"}
    data = []
    for folder, inner, names in os.walk(root / "data"):
        inner[:] = [name for name in inner if name not in made]
        data += [Path(folder, name) for name in names]
    package = [path for suffix in ("py", "js") for path in (root / "dfl_utils").rglob(f"*.{suffix}")]
    store = published_run.place()
    results = [*(root / "results").glob("*/*.*"), store, store / published_run.INDEX] if scale == "published" else []
    questions = root / "book" / "questions.yml"  # what a chapter's rows are asked
    return [_age(path) for path in sorted({*package, *data, *results, questions}) if path.exists()]


def _age(path: Path) -> tuple[str, int, int]:
    found = path.stat()
    return path.relative_to(provenance.ROOT).as_posix(), found.st_size, found.st_mtime_ns


def state(target: Path, fingerprint: str, results: Path) -> str:
    """What an executed copy is worth: `fresh`, or why it is not. A chapter that failed leaves none."""
    if not target.is_file():
        return "has not been run, or failed"
    made = json.loads(target.read_text(encoding="utf-8"))["metadata"].get("dfl", {})  # nbformat looks at every cell
    if made.get("key") != fingerprint:
        return "has changed since it last ran"
    if not all((results / name).is_file() for name in made["results"]):
        return "has lost the numbers that it saved"
    return "fresh"


def worth(scale: str) -> dict[str, str]:
    """Chapter -> what its executed copy in the book is worth: see `state`."""
    copies, results, found = folder("src"), folder("results") / scale, {}
    for name, source in chapters.sources().items():
        fingerprint = key(source, chapters.at_scale(source, scale), scale)
        found[name] = state(copies / source.name, fingerprint, results)
    return found


def refuse_stale(scale: str) -> None:
    """Raise BuildFailed unless the executed copies are of this scale, what the tree makes now, and whole."""
    for name, found in worth(scale).items():
        if found != "fresh":
            raise BuildFailed(f"Chapter {name} {found}; run `dfl book --scale {scale}` again.")


def _execute(source: Path, values: Mapping[str, Scalar], results: Path) -> NotebookNode:
    import papermill
    from traitlets.config import Config

    from dfl_utils.build import kernels

    results.mkdir(parents=True, exist_ok=True)
    # Kernels run in the chapters' folder: what is named from here is named whole.
    named = {name: provenance.named_folder(name) for name in ("DFL_STORE", "DFL_PUBLISHED")}
    variables = {name: str(folder) for name, folder in named.items() if folder}
    variables |= {"DFL_FROM": str(Path.cwd()), "DFL_RESULTS": str(results), "DFL_CHAPTER": source.stem}
    variables |= {"DFL_LEDGER": str(results / f"{source.stem}.shards")}
    variables |= {"DFL_PROGRESS": os.environ.get("DFL_PROGRESS", "0")}  # `dfl run` asks for bars
    try:
        with tempfile.TemporaryDirectory(prefix="dfl-", dir=kernels.socket_folder()) as sockets:
            return papermill.execute_notebook(
                nbformat.read(source, as_version=4),
                None,
                parameters=dict(values),
                engine_name=kernels.ENGINE,
                kernel_name="python3",
                language="python",
                progress_bar=False,
                folder=source.parent,
                variables=variables,
                stderr_file=sys.stderr,
                start_timeout=START_TIMEOUT,
                # Sockets of the file system: a chapter runs where there is no network at all, not even loopback.
                config=Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/kernel"}}),
            )
    except papermill.PapermillExecutionError as error:
        trace = "\n".join(error.traceback)
        print(trace if sys.stderr.isatty() else re.sub(r"\x1b\[[0-9;]*m", "", trace), file=sys.stderr)
        first = error.source.strip().splitlines()[0]
        what = f"{error.ename}: {error.evalue}".splitlines()[0]
        raise BuildFailed(f"Chapter {source.stem} failed in cell [{error.exec_count}] `{first}` with {what}") from error
    except RuntimeError as error:
        raise BuildFailed(f"The kernel of chapter {source.stem} ended ({error}), often for want of memory.") from error


def side_by_side(tasks: Sequence[Callable[[], None]], jobs: int) -> None:
    """Do tasks that execute chapters, `jobs` at a time, each with its part of the cores.

    A thread waits for each kernel, so that all kernels come from one server. The first that fails stops those that
    wait, and its error is raised.
    """
    from dfl_utils.build import kernels

    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))} if jobs > 1 else {}
    with environment(**threads), ThreadPoolExecutor(jobs) as pool:
        kernels.start()
        futures = [pool.submit(task) for task in tasks]
        try:
            for future in futures:
                future.result()
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            if not isinstance(error, Exception):
                kernels.stop()
            raise


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
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.metadata["tags"] = ["injected-parameters", "hide-input"]
            cell.metadata["mystnb"] = {"code_prompt_show": PROMPT}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook
