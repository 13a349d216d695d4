"""Exhibits to play with: each is HTML with its data and a script inside, which asks nothing of a server or a network.

Without its script, and in print, an exhibit shows its still.
"""

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import HTML
from numpy.typing import ArrayLike
from PIL import Image

from dfl_utils.exhibits import paper, tidy
from dfl_utils.scores import ranking
from dfl_utils.scores.ranking import Estimate

SCRIPTS = Path(__file__).with_name("scripts")
FRONT = (480, 260, 44)  # width, height and margin of the picture of costs


def captions(
    originals: Sequence[ArrayLike],
    candidates: Sequence[Sequence[str]],
    drawings: Sequence[ArrayLike],
    quality: tuple[str, ArrayLike],
    judges: Mapping[str, ArrayLike],
) -> HTML:
    """A game: an image and its N captions, of which one is to be picked; then what was drawn from each.

    Args:
        originals: R images.
        candidates: N captions of each.
        drawings: the drawing of each caption, R of `(N, H, W, 3)` uint8.
        quality: a metric and what each caption is worth by it, `(R, N)`.
        judges: name -> similarity, `(R, N)`; the highest is the judge's pick.
    """
    given = [{"image": picture(image)} for image in originals]
    return _telephone("captions", given, [{}] * len(given), candidates, drawings, quality, judges)


def drawings(
    texts: Sequence[str],
    originals: Sequence[ArrayLike],
    drawn: Sequence[ArrayLike],
    read: Sequence[Sequence[str]],
    quality: tuple[str, ArrayLike],
    judges: Mapping[str, ArrayLike],
) -> HTML:
    """The other game: a text and its N drawings, of which one is to be picked; then what was read in each, and the
    image that the text was written of. Arguments as of `captions`."""
    given, then = [{"text": text} for text in texts], [{"image": picture(image)} for image in originals]
    return _telephone("drawings", given, then, read, drawn, quality, judges)


def _telephone(kind: str, given, then, texts, images, quality, judges) -> HTML:
    metric, worth = quality[0], np.asarray(quality[1], dtype=float)
    digits = tidy.DIGITS.get(metric, 1)
    rounds = []
    for k, before in enumerate(given):
        each = zip(texts[k], images[k], worth[k], strict=True)
        found = [{"text": text, "image": picture(image), "worth": round(w, digits)} for text, image, w in each]
        places = {name: ranking.ranks(sim)[k].tolist() for name, sim in judges.items()}
        rounds.append({"given": before, "then": then[k], "candidates": found, "judges": places})
    label = "CLIP distance" if metric == "CLIP" else metric  # CLIP is a judge, too
    data = {"kind": kind, "metric": label, "digits": digits, "higher": _higher(metric), "rounds": rounds}
    return _exhibit("telephone", data, _first(rounds[0], label))


def _higher(metric: str) -> bool:
    return paper.improvement(1.0, metric) > 0


def _first(one: dict, metric: str) -> str:
    """The first round as a gallery."""
    shown = [*([one["given"]] + [one["then"]] * bool(one["then"])), *one["candidates"]]
    figures = []
    for part in shown:
        worth = f"({metric} {part['worth']})" if "worth" in part else ""
        text = escape(" ".join(filter(None, [part.get("text", ""), worth])) or "the original")
        image = f'<img alt="{text}" src="{part["image"]}">' if "image" in part else ""
        figures.append(f"<figure>{image}<figcaption>{text}</figcaption></figure>")
    return f'<div class="gallery">{"".join(figures)}</div>'


def curves(judges: Mapping[str, ArrayLike], measures: Mapping[str, ArrayLike]) -> HTML:
    """Quality against rank, of a judge, a metric and a number of candidates that the reader chooses.

    Args:
        judges: name -> similarity, `(images, N)`.
        measures: metric -> quality, `(images, N)`; NaN where a candidate has none.
    """
    places = {name: ranking.ranks(sim).tolist() for name, sim in judges.items()}
    worth, lines = {}, []
    for metric, values in measures.items():
        digits = tidy.DIGITS.get(metric, 1) + 1
        rows = np.round(np.asarray(values, dtype=float), digits).tolist()
        rows = [[None if np.isnan(value) else value for value in row] for row in rows]
        worth[metric] = {"values": rows, "higher": _higher(metric), "digits": digits - 1}
        for name, sim in judges.items():
            change = tidy.improved(ranking.gain(sim, values).percent, metric)
            lines.append({"judge": name, "score": metric, "gain, %": tidy.written(change, 1, "+")})
    still = pd.DataFrame(lines).pivot(index="judge", columns="score", values="gain, %")[list(measures)]
    caption = "<p>Gain of the best-ranked candidate over a random pick, in per cent.</p>"
    return _exhibit("curves", {"judges": places, "measures": worth}, caption + still.to_html(border=0))


def front(seconds: Mapping[str, float], worth: Mapping[str, Estimate], cost: str, gain: str) -> HTML:
    """What judges cost and what they are worth: a point each, whose numbers are said where it is pointed at.

    Args:
        seconds: judge -> cost, above zero; drawn on a logarithmic scale.
        worth: judge -> gain.
        cost, gain: the axes' names.
    """
    names = sorted(seconds, key=lambda name: (seconds[name], -worth[name].value))
    best = np.maximum.accumulate([worth[name].value for name in names])
    leads = {name for k, name in enumerate(names) if not k or best[k] > best[k - 1]}
    width, height, margin = FRONT
    x = _scale(np.log10([seconds[name] for name in names]), margin + 8, width - 12)
    y = _scale(np.array([[worth[n].low, worth[n].value, worth[n].high] for n in names]), height - margin, 12)
    points = []
    for name, across, heights in zip(names, x, y, strict=True):
        said = f"{name}: {seconds[name]:.3g} {cost}, {gain} {tidy.written(worth[name], 1, '+')}"
        points.append(_point(said, name in leads, across, heights))
    line = " ".join(f"{x[k]:.1f},{y[k, 1]:.1f}" for k, name in enumerate(names) if name in leads)
    foot, least = height - margin, f"{min(seconds.values()):.2g}"
    picture = (
        f'<svg viewBox="0 0 {width} {height}" role="group" aria-label="{escape(gain)} against {escape(cost)}">'
        f'<path class="axis" d="M{margin} 8V{foot}H{width - 8}"/><polyline points="{line}"/>{"".join(points)}'
        f'<text x="{width - 8}" y="{height - 14}" text-anchor="end">{escape(cost)}, logarithmic →</text>'
        f'<text x="{margin}" y="{height - 14}">{least}</text>'
        f'<text x="14" y="{foot}" transform="rotate(-90 14 {foot})">{escape(gain)} →</text></svg>'
    )
    hint = "Point at a judge, or move to it with the Tab key, for its numbers."
    return _exhibit("front", {}, f'{picture}<p role="status">{hint}</p>')


def _point(said: str, leads: bool, x: float, y: Sequence[float]) -> str:
    """A judge's mark with its interval, and its numbers for whoever points at it, tabs to it or hears it."""
    said = escape(f"{said}, {'on the front' if leads else 'dearer and no better than another'}")
    low, middle, high = y
    return (
        f'<g tabindex="0" role="img" aria-label="{said}" class="{"lead" if leads else "behind"}"><title>{said}</title>'
        f'<path d="M{x:.1f} {low:.1f}V{high:.1f}"/><circle cx="{x:.1f}" cy="{middle:.1f}" r="6"/></g>'
    )


def _scale(values: np.ndarray, start: float, stop: float) -> np.ndarray:
    low, high = values.min(), values.max()
    return start + (values - low) / max(high - low, 1e-9) * (stop - start)


def tokenizers(words: Sequence[str], clip, index: Sequence[int], how: Sequence[str], still: str) -> HTML:
    """Two tokenizers that cut what the reader types, WordPiece and CLIP's byte pairs, and the map between their tokens.

    Args:
        words: the tokens of WordPiece, in order.
        clip: the tokenizer of byte pairs, of transformers.
        index: a token of CLIP for each of WordPiece's.
        how: the rule that chose it.
        still: HTML that stands for the exhibit in print.
    """
    rules = list(dict.fromkeys(how))
    merges = json.loads(clip.backend_tokenizer.to_str())["model"]["merges"]  # its vocabulary follows from them
    known = clip.get_vocab()
    own = [known.get(f"{word.removeprefix('##')}</w>") for word in words]
    numbers = [None if itself == k else int(k) for itself, k in zip(own, index, strict=True)]  # most stay themselves
    packed = {"words": words, "merges": [" ".join(pair) for pair in merges], "index": numbers}
    packed |= {"how": [rules.index(rule) for rule in how], "rules": rules}
    data = base64.b64encode(gzip.compress(_json(packed).encode(), 9, mtime=0)).decode()
    return _exhibit("tokens", {"packed": data}, still)


def picture(image: ArrayLike, most: int | None = None) -> str:
    """A data address of an image, pixel by pixel, its longer side cut to so many pixels at `most`."""
    shown, packed = Image.fromarray(np.asarray(image)), BytesIO()
    if most:
        shown.thumbnail((most, most))
    shown.save(packed, "WEBP", lossless=True, method=6)
    return f"data:image/webp;base64,{base64.b64encode(packed.getvalue()).decode()}"


def _json(data: object) -> str:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"))


def _exhibit(name: str, data: object, still: str) -> HTML:
    script = (SCRIPTS / f"{name}.js").read_text(encoding="utf-8")
    inside = _json(data).replace("<", "\\u003c")  # or a text could end the element
    return HTML(
        f'<div class="play play-{name}"><div class="play-still">{still}</div>'
        f'<script type="application/json">{inside}</script></div>\n<script>\n{script}</script>'
    )
