"""Numbers compared with numbers: a build at scale ci with the committed rows, recomputed shards with the published.

Two machines round differently. Measured at scale ci on an Intel Xeon with AVX-512: its own kernels against those of
AVX2 and of SSE4.2 (`ATEN_CPU_CAPABILITY`, `ONEDNN_MAX_CPU_ISA`, `MKL_ENABLE_INSTRUCTIONS`, `OPENBLAS_CORETYPE`), and
one thread against two. No caption changed a word, so what is counted in words (CIDEr, SPICE-like, WMD, B@4, tokens) is
exact. Of the drawings' pixels up to 3 in 1,000 were rounded to the next level, and what is read off drawings follows
them. An AMD EPYC differs by no more. The tolerances are about three times the largest difference that was seen.
"""

import argparse
import re
from collections.abc import Iterator

import numpy as np
import pandas as pd

from dfl_utils.build import execution, publish
from dfl_utils.exhibits import tidy
from dfl_utils.store import provenance
from dfl_utils.store.shards import Content

GOLDEN = "results/ci/exhibits.csv"
EXACT = 2e-6  # relative: six digits are written, and the last may be rounded either way
ZERO = 1e-9  # a sum that is zero but for its rounding
# Metric -> absolute and relative tolerance, of scores of drawings.
OF_DRAWINGS = {
    "CLIP": (1e-3, 5e-4),  # seen: 4e-3 of a distance of 31, in per cent
    "CLIP cosine": (2e-4, 0),  # seen: 4e-5
    "DINO": (1e-4, 0),  # seen: 3e-5
    "FID": (0.05, 5e-4),  # seen: 0.08 of 633
    "FID, other images": (0.03, 0),  # seen: 8e-3, in per cent
    "IS": (1e-4, 2e-4),  # seen: 1.5e-4 of 4.5
    "KID": (0.25, 0),  # seen: 0.07; it crosses zero
    "EfficientNet-KID": (6e-4, 0),  # seen: 1e-4 of sets of four; its gains are left out where a level may be zero
}
# The same of gains and differences in per cent, in which the difference of two drawings stands alone.
GAINS = {"CLIP": 0.1, "DINO": 0.02, "FID": 0.03, "KID": 0.25, "IS": 6e-3}  # seen: 0.04, 6e-3, 8e-3, 0.07, 2e-3
# Embeddings of equal texts differ in the last bits, and the paper's gains divide by small differences of them.
OF_TEXTS = {"CLIP-text": (1e-4, 5e-6), "SBERT": (1e-4, 5e-6)}  # seen: 2e-5
LOSSES = (1e-6, 5e-5)  # of a trained pair; seen: 1e-6 of 0.75
GRADIENTS = (0, 1e-5)  # norms before a training; seen: 3.5e-6
# Of a shard: the share of its texts, or of its pixels, that may differ (no text and 0.3 % of pixels seen), and by what
# part of the largest its numbers may. The latter is 7e-4 at most where drawings are seen, 1e-6 elsewhere.
TEXTS = 0.02
OF_PIXELS = ("shown-images", "shown-token-images", "images", "token-images", "anatomy", "way-gradients")
COUNTED = ("quality-cider", "quality-wmd", "quality-spice", "step-flops", "census", "token-map")
SEEN = (
    *("clip-similarity", "dino-similarity", "efficientnet-similarity", "pixel-similarity", "clip-embeddings"),
    *("features", "labels", "probe-labels"),
)
OWN = {"noted", "digests"}  # contents of one day, and of the last bits of one machine


def tolerance(metric: str, method: str = "") -> tuple[float, float]:
    """Absolute and relative difference that a row's numbers may have between two machines."""
    if metric.endswith("_loss"):
        return LOSSES
    if " gradient " in metric:
        return GRADIENTS
    if metric in GAINS and re.search(r"gain|rise|trend| over | minus ", method):
        return GAINS[metric], OF_DRAWINGS[metric][1]
    return (OF_DRAWINGS | OF_TEXTS).get(metric, (ZERO, EXACT))


def differences(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """The numbers of two tables of rows (`tidy.validate`), side by side.

    Left out are measured times, and what is said of the operating point, which is the cheapest of choices that are
    nearly equally good: on other seconds it is another.

    Columns `tidy.KEY`, `what` (value, low or high; n or paper where these differ; `row` where one side lacks it),
    `old`, `new`, `difference` and `agrees`.
    """
    sides = [frame[~_timed(frame)] for frame in (before, after)]
    both = sides[0].merge(sides[1], on=tidy.KEY, how="outer", suffixes=("_old", "_new"), indicator=True)
    lines = [[row[name] for name in tidy.KEY] + pair for row in both.to_dict("records") for pair in _pairs(row)]
    return pd.DataFrame(lines, columns=[*tidy.KEY, "what", "old", "new", "difference", "agrees"])


def _timed(frame: pd.DataFrame) -> pd.Series:
    times = frame.exhibit.eq("cost") & frame.metric.isin(tidy.TIMED)
    return times | frame.exhibit.eq("operating") & frame.method.str.startswith("the point ")


def _pairs(row: dict) -> Iterator[list]:
    if row["_merge"] != "both":
        yield ["row", row["value_old"], row["value_new"], np.nan, False]
        return
    absolute, relative = tolerance(row["metric"], row["method"])
    for what in ("value", "low", "high", "n", "paper"):
        old, new = row[f"{what}_old"], row[f"{what}_new"]
        exact = what in ("n", "paper")
        agrees = np.isclose(new, old, rtol=0 if exact else relative, atol=0 if exact else absolute, equal_nan=True)
        if not agrees or not exact and pd.notna(old):
            yield [what, old, new, new - old, bool(agrees)]


def of_shard(kind: str) -> tuple[float, float]:
    """Share of whole numbers that may differ, and difference of others relative to the largest, in a kind of shard."""
    if kind.startswith(COUNTED):
        return 0.0, EXACT
    return (TEXTS if kind in OF_PIXELS else 0.0), (3e-3 if kind in SEEN else 5e-5)


def alike(published: Content, recomputed: Content, kind: str) -> tuple[float, bool]:
    """Largest difference of two shards of a kind, and whether it is within what machines differ by.

    Of texts and whole numbers, the difference is the share that differs; NaN of two that cannot be compared.
    """
    if published.keys() != recomputed.keys():
        return np.nan, False
    found = [_apart(published[name], recomputed[name], *of_shard(kind)) for name in published.keys() - OWN]
    return max([apart for apart, _ in found], default=0.0), all(agrees for _, agrees in found)


def _apart(old: np.ndarray | list[str], new: np.ndarray | list[str], share: float, relative: float):
    old, new = np.asarray(old), np.asarray(new)
    if old.shape != new.shape or old.dtype.kind != new.dtype.kind:
        return np.nan, False
    if old.dtype.kind != "f":
        apart = float((old != new).mean()) if old.size else 0.0
        return apart, apart <= (TEXTS if old.dtype.kind == "U" else share)
    finite = np.isfinite(old)
    if not np.array_equal(np.where(finite, 0, old), np.where(np.isfinite(new), 0, new), equal_nan=True):
        return np.inf, False
    old, new = old[finite].astype(np.float64), new[finite]
    apart = float(np.abs(new - old).max(initial=0.0))
    return apart, bool(apart <= relative * np.abs(old).max(initial=0.0) + ZERO)


def table(lines: pd.DataFrame, most: int | None = None) -> str:
    """Numbers as text, `most` lines of them at most."""
    return lines.to_string(index=False, na_rep="", float_format="{:.6g}".format, max_rows=most)


def main(arguments: argparse.Namespace) -> int:
    """Compare the last build at scale ci with the committed rows, and print what differs; 1 if anything does.

    Or `write` the build's rows in place of these. BuildFailed: no whole build of this tree; ValueError: no such file.
    """
    execution.refuse_stale("ci")
    built, path = publish.merged(execution.folder("results") / "ci")[0], provenance.ROOT / GOLDEN
    if arguments.write:
        tidy.write(built, path)
        print(f"written: {GOLDEN}")
        return 0
    if not path.is_file():
        raise ValueError(f"There is no {GOLDEN}: `make golden` writes it.")
    lines = differences(tidy.read(path), built)
    wrong = lines[~lines.agrees]
    if wrong.empty:
        print(f"{len(lines)} numbers are those of {GOLDEN}")
        return 0
    print(table(wrong.drop(columns="agrees"), most=20))
    print(f"{len(wrong)} of {len(lines)} numbers differ from {GOLDEN}; `make golden` takes the new ones.")
    return 1
