"""`make pdf`: the built pages as one PDF, printed by Chromium, chapter after chapter."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from dfl_utils.build import chapter as chapters
from dfl_utils.build.execution import folder

ARTICLE = re.compile(r'<article class="bd-article".*?</article>', re.DOTALL)
HEAD = re.compile(r"<head>.*?</head>", re.DOTALL)
NAMES = ("chromium", "chromium-browser", "google-chrome")
WAIT = 120_000  # milliseconds of the page's own time, for MathJax
MOST = 900  # seconds; it takes half a minute, and on a machine that is busy it may never end
TITLE = re.compile(r"<title>.*?</title>", re.DOTALL)
# A chapter begins on a page of its own; what is for a window, a folded cell among it, has no place on paper.
STYLE = """<style>
html{font-size:80%} main.bd-content{display:block} article{break-before:page} h1,h2,h3{break-after:avoid}
img,svg,tr{break-inside:avoid} .headerlink,details.hide:not([open]){display:none}
</style>"""


def joined(site: Path) -> str:
    """One page of HTML that holds all, in the order of the contents; ValueError where the book is not built."""
    if not (site / "index.html").is_file():
        raise ValueError("There are no pages to print: run `make book` first.")
    texts = [(site / f"{name}.html").read_text(encoding="utf-8") for name in chapters.pages()]
    articles = [article for text in texts for article in ARTICLE.findall(text)]
    heads = [found[0] for text in texts if (found := HEAD.search(text))]
    head = max(heads, key=lambda text: "mathjax" in text.lower())  # one that sets formulas
    title = "".join(TITLE.findall(heads[0]))  # the first page's is the book's
    head = TITLE.sub(lambda _: title, head)
    body = f'<main class="bd-content">{"".join(articles)}</main>'
    return f'<!doctype html><html lang="en" data-theme="light">{head}{STYLE}<body>{body}</body></html>'


def main() -> int:
    """Print `_build/book.pdf`: 0, or 2 after a sentence on what is missing."""
    site = folder("html")
    browser = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    try:
        if browser is None:
            raise ValueError("There is no Chromium, which prints the PDF: install it, or set CHROMIUM to its path.")
        whole, target = site / "all.html", site.parent / "book.pdf"
        whole.write_text(joined(site), encoding="utf-8")
    except ValueError as error:
        print(f"dfl: error: {error}", file=sys.stderr)
        return 2
    options = [browser, "--headless", "--no-sandbox", "--no-pdf-header-footer", f"--virtual-time-budget={WAIT}"]
    try:
        command = [*options, f"--print-to-pdf={target}", whole.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=MOST)
    except subprocess.TimeoutExpired:
        print(f"dfl: error: {browser} did not print within {MOST // 60} minutes: try again.", file=sys.stderr)
        return 2
    finally:
        whole.unlink()
    print(f"the book as one PDF: {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
