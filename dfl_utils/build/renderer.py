"""The process that renders the pages: it imports Sphinx while chapters still run, and works on all cores.

A program of its own, which `book` starts with a build and gives its order when the chapters are there.
"""

import json
import os
import subprocess
import sys
from contextlib import suppress
from importlib import import_module

# What takes seconds to import of all that Sphinx does for this book.
SLOW = ("jupyter_book.sphinx", "sphinx.builders.html", "myst_nb.sphinx_ext", "sphinxcontrib.bibtex")
SLOW += ("sphinx_book_theme", "sphinx_design", "dfl_utils.build.bookext")


def start() -> subprocess.Popen:
    """Let the renderer get ready. It ends with its order, or without one when its input is closed."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([sys.executable, "-P", __file__], text=True, **pipes)


def render(process: subprocess.Popen, scale: str, **options: object) -> subprocess.CompletedProcess:
    """Have pages rendered, and wait for them; `options` of `jupyter_book.sphinx.build_sphinx`."""
    order = json.dumps({"scale": scale, "options": options})
    output, errors = process.communicate(order)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def main() -> int:
    """Import, wait for the order, and carry it out: 0, or 1 where Sphinx failed or warned."""
    for name in SLOW:
        with suppress(ImportError):  # Sphinx says so better
            import_module(name)
    if not (order := sys.stdin.read()):
        return 0
    order = json.loads(order)
    os.environ["DFL_SCALE"] = order["scale"]
    from jupyter_book.sphinx import build_sphinx

    # One more than there are cores: the one that hands out pages waits for the others.
    failed = build_sphinx(jobs=(os.cpu_count() or 1) + 1, **order["options"])
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
