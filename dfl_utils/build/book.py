"""The book's build: every chapter executed at a scale, the numbers published, the pages rendered.

An executed copy is reused only while its key is the tree's, and none is rendered otherwise: no failed, half-run
or out-of-date chapter reaches a page.
"""

import hashlib
import importlib.metadata
import json
import shutil
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from dfl_utils.build import chapter as chapters
from dfl_utils.build import disclosure, front, kernels, publish, ranges, renderer
from dfl_utils.build.chapter import BuildFailed
from dfl_utils.build.execution import environment, folder, refuse_stale, run_chapter, side_by_side, worth
from dfl_utils.store import processes, provenance, published_run
from dfl_utils.store.store import default_root

FROM_NOTHING = ("ci", "quick")  # scales that prove the code: of an empty run store
RENDERERS = ("jupyter-book", "sphinx", "myst-nb", "sphinx-book-theme", "pydata-sphinx-theme")
SETTINGS = ("_config.yml", "_toc.yml", *(f"dfl_utils/build/{name}.py" for name in ("bookext", "book", "renderer")))
PICTURES = ("*.png", "*.svg")
MARK = ".rendered"  # in the folder of the pages: what they were rendered from


def build(scale: str = "published", html: bool = True, jobs: int = 1, reuse: bool = False) -> Path | None:
    """Execute every chapter that changed, publish where the scale does, render the book, and return its first page.

    Every chapter's parameters are checked before the first one runs; `jobs` run at a time, in threads that share the
    run store. The scale `published` shows the published run, and makes anew what is not found in it; `ci` and `quick`
    start from an empty run store; `full` and `paper` go on from the usual one, and use nothing that was published.
    With `reuse` any scale takes what the usual run store and the published run hold: a published run goes on.

    ValueError: an unknown scale or parameter; numbers to publish of a tree with uncommitted changes.
    BuildFailed: a chapter failed, a copy is stale, something tells of this machine, or jupyter-book warned.
    """
    for source in chapters.sources().values():
        values = chapters.effective(source, chapters.at_scale(source, scale))
        ranges.check(source.stem, values, machine=scale == "paper")  # the small world's models lie beside it
    if scale == "full":
        publish.require_clean()
    results, here = folder("results") / scale, processes.place()
    fresh = scale in FROM_NOTHING and here.world_size == 1 and not reuse
    if fresh:  # what an earlier build left is not taken for this one's
        shutil.rmtree(results, ignore_errors=True)
    busy = fresh or set(worth(scale).values()) != {"fresh"}
    # It gets ready while chapters run, on the core that waits for the kernels' server at first.
    with renderer.start() if html and busy else nullcontext() as process:
        with environment(**kernels.variables(), **_stores(reuse or scale == "published", scale, fresh)):
            _execute(scale, jobs, fresh)
        refuse_stale(scale)
        if scale == "full" and here.rank == 0:
            disclosure.refuse(results, sorted(results.glob("*.*")))
            made = publish.publish("mini", results, default_root(), reuse)
            print(f"published {made.relative_to(provenance.ROOT)}")
            front.main()
        return render(scale, process) if html else None


def _stores(reuse: bool, scale: str, fresh: bool) -> dict[str, str]:
    """Where the chapters of a build look for work that is done."""
    if fresh:
        place = folder("store") / scale
        shutil.rmtree(place, ignore_errors=True)
        return {"DFL_STORE": str(place), "DFL_PUBLISHED": "", "DFL_ONLY": "", "DFL_PUBLISHED_INNER": ""}
    # A run that cannot be used is said once, here, and not by every chapter.
    return {} if reuse and published_run.opened() else {"DFL_PUBLISHED": ""}


def _execute(scale: str, jobs: int, fresh: bool) -> None:
    """Every chapter, those with most to say first, so that none of them is worked on alone at the end."""

    def execute(name: str) -> None:
        target, results = folder("src") / f"{name}.ipynb", folder("results") / scale
        run_chapter(name, scale=scale, target=target, results=results, reuse=not fresh)

    sizes = {name: source.stat().st_size for name, source in chapters.sources().items()}
    side_by_side([partial(execute, name) for name in sorted(sizes, key=sizes.get, reverse=True)], jobs)


def render(scale: str, process: subprocess.Popen | None = None) -> Path:
    """Render chapters and prose, and return the first page; a warning is an error, as is a page that tells too much.

    `process`: a renderer that has been started.
    """
    refuse_stale(scale)
    _copy_prose()
    root, site = provenance.ROOT, folder("html")
    index, mark, wanted = site / "index.html", site / MARK, _rendered_from(scale)
    if index.is_file() and mark.is_file() and mark.read_text(encoding="utf-8") == wanted:
        print("the pages: nothing has changed since they were rendered", flush=True)
        return index
    shutil.rmtree(site, ignore_errors=True)
    options = {"sourcedir": str(folder("src")), "outputdir": str(site), "path_config": str(root / "_config.yml")}
    # As `jupyter-book build -W -n --keep-going --all`, with the last of which a page that warned once is read again.
    settings = {"external_toc_path": str(root / "_toc.yml"), "nitpicky": True, "latex_individualpages": False}
    options |= {"confoverrides": settings}
    options |= dict.fromkeys(("noconfig", "warningiserror", "keep_going", "freshenv"), True)
    done = renderer.render(process or renderer.start(), scale, **options)
    if done.returncode != 0 or not index.is_file():
        print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
        raise BuildFailed("jupyter-book did not accept the book; its messages above name the pages.")
    disclosure.refuse(site, disclosure.pages(site))
    mark.write_text(wanted, encoding="utf-8")  # last: pages that were refused are rendered again
    return index


def _rendered_from(scale: str) -> str:
    """Hash of all that the pages show: copies, prose, pictures, settings, the commit that dates them, packages."""
    parts = [scale, provenance.files_hash(folder("src")), provenance.files_hash(folder("results"), PICTURES)]
    parts += [provenance.file_hash(path) for name in SETTINGS if (path := provenance.ROOT / name).is_file()]
    parts += [provenance.git("rev-parse", "HEAD"), provenance.git("remote", "get-url", "origin")]
    parts += map(importlib.metadata.version, RENDERERS)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _copy_prose() -> None:
    """Copy book/ without its chapters beside the executed copies, its tables filled, and published pictures."""
    book, src, results = provenance.ROOT / "book", folder("src"), provenance.ROOT / "results"
    src.mkdir(parents=True, exist_ok=True)
    for path in src.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.stem not in chapters.sources() or path.suffix != ".ipynb":
            path.unlink()
    shutil.copytree(book, src, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.ipynb", ".*"))
    for page in src.glob("*.md"):
        page.write_text(front.filled(page.read_text(encoding="utf-8")), encoding="utf-8")
    for picture in [path for pattern in PICTURES for path in results.glob(f"*/{pattern}")]:
        # A page names it ../results/<profile>/<picture>: the same place seen from book/ and from _build/src/.
        copy = folder("results") / picture.relative_to(results)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(picture, copy)
