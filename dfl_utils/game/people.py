"""Judges beside people: how a caption's scores go with what was published that people said of it."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from dfl_utils.game.caption_scores import score_captions
from dfl_utils.scores import intervals
from dfl_utils.scores.ranking import TAILS, Estimate
from dfl_utils.store.store import RunStore
from dfl_utils.world import judgements, profile
from dfl_utils.world.judgements import Preferred, Rated
from dfl_utils.world.profile import Profile

NUM_RESAMPLES = 200  # of images; a tau of Flickr8k-Expert's 17,000 ratings takes some 20 ms


def beside(
    people: Mapping[str, Sequence[Rated] | Sequence[Preferred]],
    judges: Sequence[str] = ("CLIPScore", "likelihood", "denoising"),
    *,
    models: str | Profile = "paper",
    store: RunStore | Path | str | None = None,
) -> pd.DataFrame:
    """A line a collection, kind and judge: Kendall's tau (Rated) or accuracy (Preferred), in per cent, with n.

    Intervals resample images, each with all its judgements.

    Args:
        people: as `judgements.read` gives them.
        judges: metrics of `score_captions`.
        models, store: the profile whose models judge, and where their work is kept.
    """
    rows = []
    for name, judged in people.items():
        by_kind: dict[str, list] = {}
        for one in judged:
            by_kind.setdefault(getattr(one, "kind", ""), []).append(one)
        for kind, part in by_kind.items():
            measure = _accuracy if isinstance(part[0], Preferred) else _tau
            found = measure(name, part, judges, {"profile": models, "store": store})
            rows += [{"collection": name, "kind": kind, "judge": judge, **one} for judge, one in found.items()]
    return pd.DataFrame(rows)


def _accuracy(name: str, judged: Sequence[Preferred], judges: Sequence[str], options: dict) -> dict[str, dict]:
    images, captions = [one.image for one in judged], [[one.better, one.worse] for one in judged]
    scores = score_captions(images, captions, judges, **options)
    rows = {}
    for judge in judges:
        hits = judgements.accuracy(*np.array(scores[judge]).T)
        of_image = pd.Series(hits).groupby(list(map(str, images))).agg(["sum", "size"]).to_numpy(float)
        share = intervals.estimate(of_image[None], lambda means: 100 * means[..., 0] / means[..., 1])
        rows[judge] = {"measure": "accuracy, %", "agreement": share, "n": len(judged)}
    return rows


def _tau(name: str, judged: Sequence[Rated], judges: Sequence[str], options: dict) -> dict[str, dict]:
    scores = score_captions([one.image for one in judged], [one.caption for one in judged], judges, **options)
    places = list(pd.Series(range(len(judged))).groupby([str(one.image) for one in judged]).indices.values())
    rng, images = np.random.default_rng(0), np.arange(len(places))
    draws = [images, *(rng.choice(images, len(images)) for _ in range(NUM_RESAMPLES))]

    def tau(judge: str, drawn: np.ndarray) -> float:
        chosen = np.concatenate([places[k] for k in drawn])
        return 100 * judgements.agreement(name, scores[judge][chosen], [judged[k] for k in chosen])

    rows = {}
    for judge in judges:
        value, *others = (tau(judge, drawn) for drawn in draws)
        low, high = np.quantile(others, TAILS)
        estimate = Estimate(value, min(low, value), max(high, value), len(places))
        rows[judge] = {"measure": "Kendall's tau, %", "agreement": estimate, "n": len(judged)}
    return rows


def main(arguments: argparse.Namespace) -> None:
    """`dfl people`: the table, printed and as a CSV.

    Raises:
        ValueError, OSError: as `judgements.read` and `score_captions`; no place to write to.
    """
    path = arguments.output
    profile.require_writable(path)
    models = profile.load(profile.with_fields(arguments.profile, arguments.p))
    table = beside(judgements.read(profile.place(arguments.folder)), arguments.judges, models=models)
    for name in ("value", "low", "high"):
        table[name] = [getattr(one, name) for one in table.agreement]
    table = table.drop(columns="agreement")
    table.to_csv(path, index=False)
    print(f"{table.round(1).to_string(index=False)}\nwritten: {path}")
