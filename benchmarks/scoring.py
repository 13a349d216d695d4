"""What scoring a run costs beside generating it: seconds of every metric of images x candidates, and its share.

Texts are scored whole. Drawings are slow to make: a sample is drawn, half of it before the scores and half after them,
so that a busy minute falls on both; its time, like the time of what looks at drawings, is multiplied.
"""

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable

import numpy as np

from dfl_utils.game.loops import Game
from dfl_utils.game.scorer import Scorer
from dfl_utils.models import fidelity
from dfl_utils.models.workshop import read
from dfl_utils.scores import image_sets
from dfl_utils.store import blocks
from dfl_utils.store.store import RunStore
from dfl_utils.world import data, profile
from dfl_utils.world.data import Example

TEXT_METRICS = ("CIDEr", "WMD", "CLIP-text", "SBERT", "SPICE-like")  # the first starts Java and tokenises for the rest
AT_MOST = 0.25  # of the generation's time
Captions = list[list[str]]
JUDGES = 2  # similarities that rank in the fidelity curves


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def drawing(game: Game, captions: Captions, examples: list[Example], count: int) -> tuple[np.ndarray, float]:
    """About `count` drawings of a run of these captions, in whole rows, and the seconds that they took."""
    candidates = len(captions[0])
    rows = range(max(1, round(count / candidates)))
    texts = [text for k in rows for text in captions[k]]
    seeds = [seed for k in rows for seed in blocks.image_seeds(0, examples[k].image_id, candidates)]
    began = time.perf_counter()
    return game.generator.draw(texts, seeds), time.perf_counter() - began


def text_times(world: profile.Profile, store: RunStore, examples: list[Example], captions: list[list[str]]) -> dict:
    """Seconds of each score of the captions: models, Java and the references' statistics included."""
    scorer = Scorer(world, store, data.load(world, "nocaps", "overall"))
    times = {metric: seconds(lambda m=metric: scorer.score(examples, captions, [m])) for metric in TEXT_METRICS}
    return times | {"BLEU": seconds(lambda: scorer.bleu_statistics(examples, captions))}


def image_times(game: Game, examples: list[Example], images: np.ndarray, total: int) -> dict:
    """Seconds of what looks at the originals, and at `total` drawings of which `images` are a sample."""
    originals, times = read(examples), {}
    encode = {name: lambda x, name=name: game.encoder(name).embed(x) for name in ("clip", "dino")}
    for name, look in (encode | {"fidelity features": lambda x: game.extractor().features(x)}).items():
        load = seconds(lambda look=look: look(originals[:1]))
        some = seconds(lambda look=look: look(images)) * total / len(images)
        label = name if name.startswith("fidelity") else f"similarity by {name}"
        times[label] = load + seconds(lambda look=look: look(originals)) + some
    return times


def curve_times(num_images: int, num_candidates: int, game: Game) -> dict:
    """Seconds of FID, KID and IS by rank and their gains with intervals, on noise of the features' shape."""
    rng = np.random.default_rng(0)
    columns = game.extractor().features(np.zeros((1, *[game.profile.image_size] * 2, 3), np.uint8)).shape[1]
    drawn, originals = (
        fidelity.split(rng.normal(size=(*shape, columns)), game.profile)
        for shape in ((num_images, num_candidates), (num_images,))
    )

    def play() -> None:
        for metric in image_sets.METRICS:
            curves = image_sets.SetCurves(drawn, originals, metric)
            for _ in range(JUDGES):
                sim = rng.normal(size=(num_images, num_candidates))
                curves.by_rank(sim), curves.gain(sim)

    return {"FID, KID, IS with intervals": seconds(play)}


def measure(world: profile.Profile, options: argparse.Namespace) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of generation and of the metrics, by name."""
    examples = data.subset(data.load(world, "nocaps", "overall"), options.images, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        store = RunStore(folder)
        game = Game(world, store, progress=False)
        game.generator.draw(["a picture"], [0])  # loaded and warm: this only makes the generation's time smaller
        game.captioner.sample(read(examples[:1]), [[[0]]], top_p=0.9)
        captions: Captions = []
        words = seconds(lambda: captions.extend(game.sample_captions(examples, options.candidates)))
        images, before = drawing(game, captions, examples, options.drawings // 2)
        metrics = text_times(world, store, examples, captions)
        metrics |= image_times(game, examples, images, options.images * options.candidates)
        metrics |= curve_times(options.images, options.candidates, game)
        _, after = drawing(game, captions, examples, options.drawings // 2)
    drawn = (before + after) / (2 * len(images)) * options.images * options.candidates
    return {"captions": words, "drawings": drawn}, metrics


def table(generation: dict[str, float], metrics: dict[str, float]) -> dict[str, float]:
    """Print seconds and shares of the drawings' time; the share of all metrics, with and without the captions' time."""
    drawings = generation["drawings"]
    rows = generation | metrics | {"all metrics": sum(metrics.values())}
    for name, value in rows.items():
        print(f"{name:30}{value:9.1f} s{100 * value / drawings:9.2f} %")
    return {name: round(value / drawings, 5) for name, value in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--candidates", type=int, default=10)
    parser.add_argument("--drawings", type=int, default=320, help="drawn as a sample, half before and half after")
    parser.add_argument("--steps", type=int, default=50, help="denoising steps")
    options = parser.parse_args()
    if min(options.images, options.candidates) < 2 or options.drawings < 2 * options.candidates:
        parser.error("two images, two candidates and two rows of drawings are the least")
    options.drawings = min(options.drawings, 2 * options.images * options.candidates)
    warnings.filterwarnings("ignore", category=image_sets.RankDeficient)
    world = profile.load("mini", num_inference_steps=options.steps)
    data.ensure(world)
    generation, metrics = measure(world, options)
    shares = table(generation, metrics)
    verdict = "met" if shares["all metrics"] < AT_MOST else "missed"
    print(f"target: all metrics take less than {AT_MOST:.0%} of the drawings' time: {verdict}")


if __name__ == "__main__":
    main()
