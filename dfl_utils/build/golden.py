"""Rows compared with rows: a build at scale ci with the committed ones, recomputed numbers with the published.

Two machines round differently. What a number may differ by is said here, once for each metric, with the reason.
Measured on 27 November 2026 at scale ci, on an Intel Xeon with AVX-512: its own kernels against those of AVX2 and of
SSE4.2 (`ATEN_CPU_CAPABILITY`, `ONEDNN_MAX_CPU_ISA`, `MKL_ENABLE_INSTRUCTIONS`, `OPENBLAS_CORETYPE`), and one thread
against two. No caption changed a word, so what is counted in words (CIDEr, SPICE-like, WMD, B@4, tokens) is exact. Of
the drawings' pixels up to 3 in 1,000 were rounded to the next level, and every number that is read off drawings follows
them. The tolerances are about three times the largest difference that was seen.
"""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from dfl_utils.build import execution, publish
from dfl_utils.exhibits import tidy
from dfl_utils.store import provenance

GOLDEN = Path("results") / "ci" / "exhibits.csv"
COMPARED = ("value", "low", "high")
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
}
# The same of gains and differences in per cent, in which the difference of two drawings stands alone.
GAINS = {"CLIP": 0.1, "DINO": 0.02, "FID": 0.03, "KID": 0.25, "IS": 6e-3}  # seen: 0.04, 6e-3, 8e-3, 0.07, 2e-3
# Embeddings of equal texts differ in the last bits, and the paper's gains divide by small differences of them.
OF_TEXTS = {"CLIP-text": (1e-4, 5e-6), "SBERT": (1e-4, 5e-6)}  # seen: 2e-5
LOSSES = (1e-6, 5e-5)  # of a trained pair; seen: 1e-6 of 0.75
# Of a shard: the share of its texts, or of its pixels, that may differ (no text and 0.3 % of pixels seen), and by what
# part of the largest its numbers may. The latter is 7e-4 at most where drawings are seen, 1e-6 elsewhere.
TEXTS = 0.02
OF_PIXELS = ("shown-images", "shown-token-images", "images", "token-images", "anatomy")  # it has three pictures
COUNTED = (
    "quality-cider",
    "quality-wmd",
    "quality-spice",
    "quality-meteor",
    "step-flops",
    "census",
    "token-map",
)
SEEN = (
    "clip-similarity",
    "dino-similarity",
    "features",
    "labels",
    "probe-labels",
    "clip-embeddings",
    "pixel-similarity",
)


def of_shard(kind: str) -> tuple[float, float]:
    """Share of whole numbers that may differ, and difference of others relative to the largest, in a kind of shard."""
    if kind.startswith(COUNTED):
        return 0.0, EXACT
    return (TEXTS if kind in OF_PIXELS else 0.0), (3e-3 if kind in SEEN else 5e-5)


MOST = 20  # lines that a table of differences has


def tolerance(metric: str, method: str = "") -> tuple[float, float]:
    """Absolute and relative difference that a row's numbers may have between two machines."""
    if metric.endswith("_loss"):
        return LOSSES
    if metric in GAINS and re.search(r"gain|trend| over | minus ", method):
        return GAINS[metric], OF_DRAWINGS[metric][1]
    return (OF_DRAWINGS | OF_TEXTS).get(metric, (ZERO, EXACT))


def differences(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """The numbers of both, side by side; measured times are left out.

    Args:
        before, after: rows, see `tidy.validate`.

    Returns:
        Columns `tidy.KEY`, `what` (value, low or high; n or paper where these differ; `row` where one side lacks
        it), `old`, `new`, `difference` and `agrees`.
    """
    sides = [frame[~(frame.exhibit.eq("cost") & frame.metric.isin(tidy.TIMED))] for frame in (before, after)]
    both = sides[0].merge(sides[1], on=tidy.KEY, how="outer", suffixes=("_old", "_new"), indicator=True)
    lines = []
    for row in both.to_dict("records"):
        key = {name: row[name] for name in tidy.KEY}
        if row["_merge"] != "both":
            gone = row["_merge"] == "left_only"
            old, new = (row["value_old"], np.nan) if gone else (np.nan, row["value_new"])
            lines.append(key | {"what": "row", "old": old, "new": new, "difference": np.nan, "agrees": False})
            continue
        absolute, relative = tolerance(row["metric"], row["method"])
        for what in (*COMPARED, "n", "paper"):
            old, new = row[f"{what}_old"], row[f"{what}_new"]
            if pd.isna(old) and pd.isna(new):
                continue
            exact = what not in COMPARED
            agrees = old == new if exact else bool(np.isclose(new, old, rtol=relative, atol=absolute))
            if not exact or not agrees:
                lines.append(key | {"what": what, "old": old, "new": new, "difference": new - old, "agrees": agrees})
    return pd.DataFrame(lines, columns=[*tidy.KEY, "what", "old", "new", "difference", "agrees"])


def shown(lines: pd.DataFrame, most: int = MOST) -> str:
    """A table of at most `most` lines, the heading among them; what does not fit is counted in the last."""
    lines = lines.assign(x=lines.x.map(lambda x: "" if pd.isna(x) else f"{x:g}"))
    for name in ("old", "new", "difference"):
        lines[name] = lines[name].map(lambda value: "" if pd.isna(value) else f"{value:.6g}")
    rows = lines.drop(columns="agrees").to_string(index=False).splitlines()
    if len(rows) > most:
        rows = [*rows[: most - 1], f"... and {len(rows) - most + 1} more"]
    return "\n".join(rows)


def built() -> pd.DataFrame:
    """The rows of the last build at scale ci.

    Raises:
        ValueError: there was none.
    """
    folder = provenance.ROOT / "_build" / "results" / "ci"
    mend = "run `dfl book --scale ci` first"
    if not execution.is_whole(folder, "ci"):
        raise ValueError(f"There is no whole build of this tree at scale ci: {mend}.")
    try:
        return publish.merged(folder)[0]
    except (OSError, ValueError) as error:
        raise ValueError(f"There is no whole build at scale ci ({error}): {mend}.") from None


def write() -> str:
    """Take the last build's rows for the committed ones."""
    tidy.write(built(), provenance.ROOT / GOLDEN)
    return GOLDEN.as_posix()


def main() -> int:
    """Compare the last build with the committed rows, and print what differs; 1 if anything does."""
    path = provenance.ROOT / GOLDEN
    if not path.is_file():
        raise ValueError(f"There is no {GOLDEN.as_posix()}: `make golden` writes it.")
    lines = differences(tidy.read(path), built())
    wrong = lines[~lines.agrees]
    if len(wrong):
        print(shown(wrong))
        print(
            f"{len(wrong)} of {len(lines)} numbers differ from {GOLDEN.as_posix()}; `make golden` takes the new ones."
        )
        return 1
    print(f"{len(lines)} numbers are those of {GOLDEN.as_posix()}")
    return 0
