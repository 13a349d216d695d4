"""Sphinx extension of the book: a site that works offline, with each page's own date and the repository's links."""

import hashlib
import importlib.metadata
import json
import os
import re
import zipfile
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util.fileutil import copy_asset

from dfl_utils.build import publish
from dfl_utils.store import provenance

# What TeX with CommonHTML output needs; the wheel's other 22 MB are other input and output formats.
MATHJAX = ("tex-chtml.js", "output/chtml/fonts/woff-v2")
SHOWN = re.compile(r"\bfa-([a-z0-9-]+)")
# An icon in Font Awesome's script: name:[width,height,[other names],"code",path].
ICON = re.compile(r"""("[\w-]+"|[\w$]+):\[\d+,\d+,\[[^\]]*\],"[0-9a-f]+",(?:"[^"]*"|\[[^\]]*\])\],?""")
SEARCHING = re.compile(r'<script src="(?:_static/searchtools|_static/language_data|searchindex)\.js"></script>\s*')
STRAY = re.compile(r"<metadata>.*?</metadata>|<style.*?</style>", re.DOTALL)  # the style is of every element of a page
NAMED = re.compile(r'\bid="|\bhref="#|\burl\(#')
COLOUR = re.compile(r"\b(fill|stroke): #([0-9a-f]{6})\b")
# They do not say that pages may be read side by side, and do nothing while one is read.
SILENT = ("sphinx_multitoc_numbering", "sphinx_jupyterbook_latex")


def read_side_by_side(app: Sphinx) -> None:
    """Say for the extensions that do not that they take nothing from the reading of a page."""
    for name in SILENT:
        if name in app.extensions:
            app.extensions[name].parallel_read_safe = True


def link_repository(app: Sphinx, config: Config) -> None:
    """Point edit and issue links at the checkout's `origin`, and name the build in the footer."""
    options = config.html_theme_options
    url = repository_url(provenance.git("remote", "get-url", "origin"))
    if url:
        buttons = ("use_repository_button", "use_edit_page_button", "use_issues_button")
        options |= {"repository_url": url, "repository_branch": "main", "path_to_docs": "book"}
        options |= dict.fromkeys(buttons, True)
    scale = os.environ.get("DFL_SCALE")
    shown = "The published book." if scale == "published" else made_where({"scale": scale})
    options["extra_footer"] = f"<p>{shown}</p>"  # of pages that are no chapter


def made_where(made: dict[str, Any], name: str = "") -> str:
    """Where a page's numbers come from, for its footer, by what `execution` noted of the chapter of a name."""
    scale, shards = made.get("scale"), made.get("shards", {})
    if scale != "published":
        return f"Computed here at scale {scale or 'unknown'}."
    if shards.get("made", 0) + shards.get("found", 0):
        return "Computed here at the published sizes: the published run lacks some of this chapter's work."
    try:
        run = publish.stamp("mini")
    except ValueError:
        return "Computed here at the published sizes."
    machine = run["machine"]
    again = f" Recompute some of it: <code>dfl verify {name}</code>." if name in run["chapters"] else ""
    return f"Published run of {run['commit'][:7]}, {run['date']}, {machine['cpu']}, {machine['cores']} cores.{again}"


def repository_url(origin: str) -> str:
    """The web address of a GitHub `origin`, without credentials; empty for any other remote."""
    _, found, path = origin.partition("github.com")
    return f"https://github.com/{path.lstrip(':/').removesuffix('.git')}" if found else ""


def finish_page(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Drop scripts that the page has no use for, and date it by git.

    Thebe is an unused CDN address that every page declares twice; MathJax weighs a megabyte.
    """
    unused = ["thebe"] if "\\(" in context.get("body", "") or "\\[" in context.get("body", "") else ["thebe", "mathjax"]
    context["script_files"] = [
        file
        for file in context.get("script_files", [])
        if not any(name in f"{file.filename} {file.attributes.get('body')}".lower() for name in unused)
    ]
    date = provenance.git("log", "-1", "--format=%cd", "--date=format:%d %B %Y", "--", f"book/{pagename}.*")
    context["last_updated"] = date or None
    copy = Path(app.srcdir) / f"{pagename}.ipynb"
    if copy.is_file():
        made = json.loads(copy.read_text(encoding="utf-8"))["metadata"].get("dfl", {})
        context["theme_extra_footer"] = f"<p>{made_where(made, pagename)}</p>"


def show_galleries(app: Sphinx, doctree: nodes.document) -> None:
    """Set a gallery as HTML, whose texts are the page's, into the figure that has its picture."""
    if app.builder.format != "html":
        return
    for bundle in [node for node in doctree.findall(nodes.container) if node.get("nb_element") == "mime_bundle"]:
        html = [child for child in bundle if child.get("mime_type") == "text/html"]
        for image in [image for child in bundle for image in child.findall(nodes.image)] if html else []:
            _replace(image, html[0].astext())
            bundle.remove(html[0])
    for image in list(doctree.findall(nodes.image)):
        if image["uri"].startswith("../results/") and (html := _gallery(app, Path(image["uri"]).stem)):
            _replace(image, html)


def _replace(image: nodes.image, html: str) -> None:
    seen = f'<div role="group" aria-label="{escape(image.get("alt", ""))}">{html}</div>'
    image.replace_self(nodes.raw("", seen, format="html"))


def _gallery(app: Sphinx, name: str) -> str:
    """The gallery that a chapter showed under a name, or ""."""
    for copy in sorted(Path(app.srcdir).glob("*.ipynb")):
        for cell in json.loads(copy.read_text(encoding="utf-8"))["cells"]:
            for output in cell.get("outputs", []):
                html = "".join(output.get("data", {}).get("text/html", ""))
                if html.startswith(f'<div data-name="{name}">'):
                    return html
    return ""


def show_plots(app: Sphinx, doctree: nodes.document) -> None:
    """Set a plot's SVG into the page itself, where the theme gives it colours and its texts are found."""
    if app.builder.format != "html":
        return
    for image in [image for image in doctree.findall(nodes.image) if image["uri"].endswith(".svg")]:
        drawing = (Path(app.srcdir) / image["uri"]).read_text(encoding="utf-8")
        image.replace_self(nodes.raw("", themed(drawing, image.get("alt", "")), format="html"))


def themed(drawing: str, alt: str) -> str:
    """An SVG for a page that has others: names of its own, and colours that `custom.css` may set by what they are."""
    drawing = STRAY.sub("", drawing[drawing.index("<svg") :])
    own = hashlib.sha256(drawing.encode()).hexdigest()[:8]
    drawing = COLOUR.sub(r"\1: var(--plot-\2, #\2)", NAMED.sub(rf"\g<0>p{own}-", drawing))
    drawing = drawing.replace("<svg", '<svg fill="currentColor"', 1)
    return f'<div class="plot" role="img" aria-label="{escape(alt)}">{drawing}</div>'


def explain_terms(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Let the pointer on a word of the glossary show its definition."""
    if "glossary" not in app.env.found_docs or docname == "glossary":
        return
    definitions = {}
    for item in app.env.get_doctree("glossary").findall(nodes.definition_list_item):
        for term in item.findall(nodes.term):
            definitions |= dict.fromkeys(term["ids"], item.children[-1].astext())
    for link in doctree.findall(nodes.reference):
        _, _, place = link.get("refuri", "").partition("#")
        if place in definitions and "glossary" in link["refuri"]:
            link["reftitle"] = definitions[place]


def copy_mathjax(app: Sphinx, exception: Exception | None) -> None:
    """Put MathJax into the site, after the build: any .js in `_static` before it would be loaded by every page."""
    if exception is not None or app.builder.format != "html":
        return
    wheel = importlib.metadata.distribution("sphinx-mathjax-offline")
    source = Path(str(wheel.locate_file("sphinx-mathjax-offline/static/mathjax")))
    target = Path(app.outdir) / "_static" / "mathjax"
    for name in MATHJAX:
        path = source / name
        copy_asset(path, target / name if path.is_dir() else (target / name).parent)


def lighten(app: Sphinx, exception: Exception | None) -> None:
    """Take from the site what the theme lets every page load and none uses: 2,000 icons, the index of the search."""
    if exception is not None or app.builder.format != "html":
        return
    site = Path(app.outdir)
    icons = site / "_static" / "scripts" / "fontawesome.js"
    texts = {path: path.read_text(encoding="utf-8") for path in [*site.glob("*.html"), *site.rglob("_static/**/*.js")]}
    shown = {name for path, text in texts.items() if path != icons for name in SHOWN.findall(text)}
    icons.write_text(ICON.sub(lambda found: found[0] if found[1].strip('"') in shown else "", texts[icons]), "utf-8")
    for path, text in texts.items():
        if path.suffix == ".html" and path.stem != "search":  # where the form of every page leads
            path.write_text(SEARCHING.sub("", text), encoding="utf-8")
    for path in site.rglob("_static/**/*.map"):
        path.unlink()


def pack_notebooks(app: Sphinx, exception: Exception | None) -> None:
    """Lay all executed notebooks into the site as one file; each by itself is what its page's download button gives."""
    if exception is not None or app.builder.format != "html":
        return
    with zipfile.ZipFile(Path(app.outdir) / "notebooks.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted(Path(app.srcdir).glob("*.ipynb")):
            entry = zipfile.ZipInfo(path.name)  # of a fixed date
            entry.external_attr, entry.compress_type = 0o644 << 16, zipfile.ZIP_DEFLATED
            packed.writestr(entry, path.read_bytes())


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the hooks; called by Sphinx."""
    app.config.mathjax_path = "mathjax/tex-chtml.js"
    app.connect("config-inited", link_repository)
    app.connect("builder-inited", read_side_by_side)
    # After the themes, which add their scripts at the default priority.
    app.connect("doctree-read", show_galleries)
    app.connect("doctree-read", show_plots)
    app.connect("doctree-resolved", explain_terms)
    app.connect("html-page-context", finish_page, priority=900)
    app.connect("build-finished", copy_mathjax)
    app.connect("build-finished", lighten)
    app.connect("build-finished", pack_notebooks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
