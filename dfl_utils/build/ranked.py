"""`dfl rerank`: a folder's images with their captions in ranked order, as a table and as a page to look at."""

import argparse
import csv
import logging
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from PIL import Image

from dfl_utils.exhibits import play
from dfl_utils.game.rerank import RankedCaption, rerank_captions
from dfl_utils.world import data, profile

COLUMNS = ("file", "rank", "similarity", "caption")
SHOWN = 256  # pixels a side at most, of a picture on the page
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Ranked captions</title><style>
:root {{ color-scheme: light dark }} body {{ font-family: sans-serif }}
section {{ display: flex; gap: 1em; overflow-x: auto; margin: 1em 0 }}
figure {{ margin: 0; width: {width}px; flex: none }} figcaption {{ overflow-wrap: anywhere }}</style>
<h1>Ranked captions</h1><p>Each image, and what the generator draws from its captions, the best first by {judge}.</p>
{body}"""

_log = logging.getLogger(__name__)


def main(arguments: argparse.Namespace) -> None:
    """Rank the captions of a folder's images, and write what was asked for.

    Raises:
        ValueError, OSError: as `annotations.folder` and `rerank_captions`; no place to write to. All before anything is
            drawn.
    """
    for path in filter(None, (arguments.output, arguments.html)):
        profile.require_writable(path)
    folder = profile.place(arguments.folder)
    examples = data.folder(folder, arguments.captions)
    captions = None
    if arguments.captions is not None:
        bare, examples = len(examples), [example for example in examples if example.references]
        captions = [example.references for example in examples]
        if bare > len(examples):
            _log.warning("%d images are left out: %s has no caption of them", bare - len(examples), arguments.captions)
    models = profile.load(profile.with_fields(arguments.profile, arguments.p))
    options = {"judge": arguments.judge, "similarity": arguments.similarity}
    options |= {"num_candidates": arguments.candidates, "seed": arguments.seed}
    paths = [example.path for example in examples]
    ranked = rerank_captions(paths, captions, profile=models, progress=True, **options)
    names = [path.relative_to(folder).as_posix() for path in paths]
    _write_table(arguments.output, names, ranked)
    if arguments.html:
        body = "".join(map(_section, names, paths, ranked))
        arguments.html.write_text(PAGE.format(width=SHOWN, judge=arguments.judge, body=body), encoding="utf-8")
    print("\n".join(f"written: {path}" for path in filter(None, (arguments.output, arguments.html))))


def _write_table(path: Path, names: Sequence[str], ranked: Sequence[Sequence[RankedCaption]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        for name, row in zip(names, ranked, strict=True):
            rows.writerows((name, entry.rank, f"{entry.similarity:.6f}", entry.caption) for entry in row)


def _section(name: str, path: Path, row: Sequence[RankedCaption]) -> str:
    """An image and its drawings, side by side."""

    def figures() -> Iterator[str]:
        yield _figure(data.read_image(path), name, escape(name))
        for entry in row:
            text = escape(entry.caption)
            yield _figure(entry.image_hat, entry.caption, f"<b>{entry.rank}</b> ({entry.similarity:.3f}) {text}")

    return f"<section>{''.join(figures())}</section>\n"


def _figure(image: Image.Image, alt: str, caption: str) -> str:
    shown = f'<img src="{play.picture(image, SHOWN)}" alt="{escape(alt)}" style="max-width: 100%">'
    return f"<figure>{shown}<figcaption>{caption}</figcaption></figure>"
