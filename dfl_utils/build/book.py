"""The book's build: every chapter executed at a scale, the numbers published, the pages rendered.

An executed copy is reused only while its key is the tree's, and none is rendered otherwise: no failed, half-run
or out-of-date chapter reaches a page.
"""

import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat

from dfl_utils.build import chapter as chapters
from dfl_utils.build import disclosure, kernels, publish
from dfl_utils.build.chapter import BuildFailed
from dfl_utils.build.execution import WHOLE, environment, folder, key, run_chapter, state, whole
from dfl_utils.store import processes, provenance, published_run
from dfl_utils.store.store import default_root

__all__ = ["BuildFailed", "build", "refuse_stale", "remote_files", "render", "run_chapter"]

# Scales whose numbers are committed, with the profile they belong to; no other scale touches results/.
PUBLISHED = {"full": "mini"}
FROM_NOTHING = ("ci", "quick")  # scales that prove the code: of an empty run store, unless told otherwise
RENDERERS = ("jupyter-book", "sphinx", "myst-nb", "sphinx-book-theme", "pydata-sphinx-theme")
MARK = ".rendered"  # in the folder of the pages: what they were rendered from


def build(scale: str = "published", html: bool = True, jobs: int = 1, reuse: bool = False) -> Path | None:
    """Execute every chapter that changed, publish where the scale does, and render the book.

    Every chapter's parameters are checked before the first one runs.

    Args:
        scale: `published` shows the published run, and makes anew what is not found in it; `ci` and `quick` start from
            an empty run store; `full` and `paper` go on from the usual one, and use nothing that was published.
        html: render the pages.
        jobs: chapters executed at a time. They share the run store, so what one is making another waits for. On a
            CPU two processes of one thread each do more than one of two threads.
        reuse: at any scale, take what the usual run store and the published run hold.

    Returns:
        The path of the book's first page, or None without `html`.

    Raises:
        ValueError: an unknown scale, parameter or page; numbers to publish of a tree with uncommitted changes, or of
            shards that were published.
        BuildFailed: a chapter failed, a copy is stale or tells of this machine, or jupyter-book warned.
    """
    for source in chapters.sources().values():
        chapters.at_scale(source, scale)
    _check_pages()
    if scale in PUBLISHED:
        publish.require_clean()
        if reuse:
            raise ValueError("A published run takes nothing that was published: leave --reuse out at scale full.")
    results, fresh = (
        folder("results") / scale,
        scale in FROM_NOTHING and not reuse and processes.place().world_size == 1,
    )
    (results / WHOLE).unlink(missing_ok=True)
    if fresh:  # what an earlier build left is not taken for this one's
        shutil.rmtree(results, ignore_errors=True)
    with environment(**kernels.variables(), **_stores(scale, reuse, fresh)):
        if jobs > 1:
            _execute_together(scale, jobs, fresh)
        else:
            kernels.start()
            for name in chapters.sources():
                _execute(name, scale, fresh)
    refuse_stale(scale)
    refuse_disclosure(scale)
    results.mkdir(parents=True, exist_ok=True)  # of a rank beside rank 0 it may be empty
    (results / WHOLE).write_text(whole(scale), encoding="utf-8")
    if scale in PUBLISHED and processes.place().rank == 0:
        try:
            print(f"published {_shown(publish.publish(PUBLISHED[scale], results, default_root()))}")
        except ValueError:
            for name in chapters.sources():  # or the next build would find them fresh, and what is lost still lost
                (folder("src") / f"{name}.ipynb").unlink(missing_ok=True)
            raise
    return render(scale) if html else None


def _stores(scale: str, reuse: bool, fresh: bool) -> dict[str, str]:
    """Where the chapters of a build look for work that is done."""
    if fresh:
        place = folder("store") / scale
        shutil.rmtree(place, ignore_errors=True)
        return {"DFL_STORE": str(place), "DFL_PUBLISHED": "", "DFL_ONLY": "", "DFL_PUBLISHED_INNER": ""}
    if scale == "published" or reuse:
        # Said once, here, and not by every chapter.
        return {} if os.environ.get("DFL_PUBLISHED") == "" or _has_published() else {"DFL_PUBLISHED": ""}
    return {"DFL_PUBLISHED": ""}


def _has_published() -> bool:
    try:
        published_run.PublishedRun(os.environ.get("DFL_PUBLISHED") or published_run.place())
    except ValueError as error:
        print(f"dfl: {error}", file=sys.stderr, flush=True)
        return False
    return True


def _execute(name: str, scale: str, fresh: bool) -> None:
    target, results = folder("src") / f"{name}.ipynb", folder("results") / scale
    require_pictures(run_chapter(name, scale=scale, target=target, results=results, reuse=not fresh))


def _execute_together(scale: str, jobs: int, fresh: bool) -> None:
    """Every chapter, `jobs` at a time, each with its part of the cores; the first failure stops those that wait.

    A thread waits for each kernel, so that all kernels come from one server.
    """
    from dfl_utils.build import kernels  # papermill takes a moment

    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    with environment(OMP_NUM_THREADS=threads), ThreadPoolExecutor(jobs) as pool:
        kernels.start()
        kernels.start_engine()
        futures = [pool.submit(_execute, name, scale, fresh) for name in chapters.sources()]
        try:
            for future in futures:
                future.result()
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            if not isinstance(error, Exception):  # the reader's Ctrl-C reaches neither threads nor kernels
                kernels.stop_engine()
            raise


def require_pictures(copy: Path) -> None:
    """Raise BuildFailed where an executed figure shows no picture, or one that a screen reader could not describe."""
    for cell in nbformat.read(copy, as_version=4).cells:
        pictures = [name for output in cell.get("outputs", []) for name in output.get("data", {}) if "image/" in name]
        shown, first = cell.metadata.get("mystnb", {}), (cell.source.strip().splitlines() or [""])[0]
        if "figure" in shown and not pictures:
            raise BuildFailed(f"Chapter {copy.stem} shows no picture in the figure of `{first}`; see {_shown(copy)}.")
        if pictures and not shown.get("image", {}).get("alt"):
            raise BuildFailed(
                f"Chapter {copy.stem} shows a picture without alt text in `{first}`; set mystnb.image.alt."
            )


def refuse_stale(scale: str) -> None:
    """Raise BuildFailed unless every executed copy is what the tree makes now, and whole."""
    for name, source in chapters.sources().items():
        fingerprint = key(source, chapters.at_scale(source, scale), scale)
        worth = state(folder("src") / source.name, fingerprint, folder("results") / scale)
        if worth != "fresh":
            raise BuildFailed(f"Chapter {name} {worth}; run `{_command(scale)}` again.")


def _command(scale: str) -> str:
    return "dfl book" if scale == "published" else f"dfl book --scale {scale}"


def refuse_disclosure(scale: str) -> None:
    """Raise BuildFailed where an executed copy, or a file of its numbers, tells of this machine (`disclosure`)."""
    inspector, src, results = disclosure.Inspector(), folder("src"), folder("results") / scale
    inspector.refuse(src, [path for name in chapters.sources() if (path := src / f"{name}.ipynb").is_file()])
    inspector.refuse(results, sorted(path for path in results.rglob("*") if path.is_file()))


def render(scale: str) -> Path:
    """Render the executed chapters and the prose pages; a warning is an error, as is a page that tells of this machine.

    Returns:
        The path of the book's first page.
    """
    refuse_stale(scale)
    _copy_prose()
    root, index, mark = provenance.ROOT, folder("html") / "index.html", folder("html") / MARK
    wanted = rendered_from(scale)
    if index.is_file() and mark.is_file() and mark.read_text(encoding="utf-8") == wanted:
        print("the pages: nothing has changed since they were rendered", flush=True)
        return index
    shutil.rmtree(folder("html"), ignore_errors=True)
    # --all: a page that warned once is read again, or its warning would be forgotten by the next build.
    arguments = ["build", str(folder("src")), "--config", str(root / "_config.yml"), "--toc", str(root / "_toc.yml")]
    arguments += ["--path-output", str(root), "--all", "-W", "--keep-going", "-n"]
    program = "from jupyter_book.cli.main import main; main()"
    with environment(DFL_SCALE=scale):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments], cwd=root, text=True, capture_output=True, check=False
        )
    if done.returncode != 0 or not index.is_file():
        print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
        raise BuildFailed("jupyter-book did not accept the book; its messages above name the pages.")
    if remote := remote_files(folder("html")):
        raise BuildFailed(f"The book would load {remote[0]}; everything it shows must lie in the site.")
    disclosure.Inspector().refuse(folder("html"), disclosure.pages(folder("html")))
    mark.write_text(wanted, encoding="utf-8")  # last: pages that were refused are rendered again
    return index


def rendered_from(scale: str) -> str:
    """Hash of all that the pages show: copies, prose, pictures, settings, the commit that dates them, packages."""
    root, src = provenance.ROOT, folder("src")
    pictures = sorted(path for path in folder("results").glob("*/*.*g") if path.suffix in (".png", ".svg"))
    settings = [
        root / name for name in ("_config.yml", "_toc.yml", "dfl_utils/build/bookext.py", "dfl_utils/build/book.py")
    ]
    files = [path for path in (*sorted(src.rglob("*")), *pictures, *settings) if path.is_file()]
    parts = [(path.relative_to(root).as_posix(), provenance.file_hash(path)) for path in files]
    git = [provenance.git("rev-parse", "HEAD"), provenance.git("remote", "get-url", "origin")]
    renderers = [importlib.metadata.version(name) for name in RENDERERS]
    return hashlib.sha256(json.dumps([scale, parts, git, renderers]).encode()).hexdigest()


def _check_pages() -> None:
    for name in chapters.pages():
        if not any((provenance.ROOT / "book" / f"{name}{suffix}").is_file() for suffix in (".md", ".ipynb")):
            raise ValueError(f"_toc.yml names the page {name}, but there is no book/{name}.md or book/{name}.ipynb.")


def _copy_prose() -> None:
    """Copy book/ without its chapters beside the executed copies, and published pictures to where pages look."""
    book, src, results = provenance.ROOT / "book", folder("src"), provenance.ROOT / "results"
    src.mkdir(parents=True, exist_ok=True)
    for path in src.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.stem not in chapters.sources() or path.suffix != ".ipynb":
            path.unlink()
    shutil.copytree(book, src, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.ipynb", ".*"))
    for picture in [*results.glob("*/*.png"), *results.glob("*/*.svg")]:
        # A page names it ../results/<profile>/<picture>: the same place seen from book/ and from _build/src/.
        copy = folder("results") / picture.relative_to(results)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(picture, copy)


def remote_files(site: Path) -> list[str]:
    """What the site's pages would load from the network, as `page: address`."""
    loads = re.compile(r"""<(?:script|img|iframe|link rel="stylesheet")[^>]*?(?:src|href)=["'](?:https?:)?(//[^"']+)""")
    pages = sorted(site.rglob("*.html"))
    return [f"{page.name}: {address}" for page in pages for address in loads.findall(page.read_text(encoding="utf-8"))]


def _shown(path: Path) -> str:
    return path.relative_to(provenance.ROOT).as_posix()
