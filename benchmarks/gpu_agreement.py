"""The embedded models on a GPU against the CPU: captions, drawings, losses, gradients, a resumed training."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from run import Row, row

from dfl_utils.game.loops import Game, Reconstructions
from dfl_utils.store.store import RunStore
from dfl_utils.training.finetune import ROLES, Finetuning, Recipe, unfreeze
from dfl_utils.training.finetuned import Finetuner
from dfl_utils.training.savings import Savings
from dfl_utils.training.step_cost import StepCost
from dfl_utils.training.vocabulary import VocabularyMap
from dfl_utils.world import data, profile
from dfl_utils.world.data import Example
from dfl_utils.world.profile import Profile

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TYPES = ("float32", "float16") if DEVICE == "cuda" else ("float32", "bfloat16")
EXACT = Savings(frozen=True, latents=True, head=True, one_pass=True)


def world(device: str = "cpu", **fields: object) -> Profile:
    """The embedded world with its small BLIP."""
    return replace(profile.load("mini", device=device).pair(captioner="blip-base"), **fields)


def agreement(quick: bool) -> list[Row]:
    """In both types; what is compared to is float32 on the CPU."""
    images, candidates, steps = (4, 2, 3) if quick else (48, 4, 50)
    here = world(num_inference_steps=steps)
    examples = data.subset(data.load(here, "nocaps", "overall"), images, seed=0)
    train = data.subset(data.load(here, "coco", "train"), 16 if quick else 64, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        store, rows = RunStore(folder), []
        told = Game(here, store, progress=False).i2t2i(examples, candidates)
        for dtype in TYPES:
            game = Game(world(DEVICE, dtype=dtype, num_inference_steps=steps), store, progress=False)
            rows += _played(game, told, f"{dtype} on the GPU against float32 on the CPU")
        return rows + _taught(store, train, 4 if quick else 20)


def _played(game: Game, told: Reconstructions, which: str) -> list[Row]:
    examples, candidates = told.examples, len(told.captions[0])
    how = f"{len(examples)} scenes x {candidates}, {game.profile.num_inference_steps} steps"
    said = game.sample_captions(examples, candidates)
    alike = sum(np.array(said).ravel() == np.array(told.captions).ravel())
    drawn, many = game.reconstruct(examples, told.captions), range(len(examples))
    apart = np.concatenate([np.abs(drawn.drawings.load(k).astype(int) - told.drawings.load(k)).ravel() for k in many])
    sims, before = drawn.sim_image["clip"], told.sim_image["clip"]
    note = (
        f"{how}, the same captions; pixels {apart.mean():.2f} levels of 255 apart on average, {np.mean(apart > 8):.2%} "
        f"more than 8; cosines {np.abs(sims - before).max():.4f} apart at most; the same best of each in "
        f"{np.mean(sims.argmax(1) == before.argmax(1)):.1%}"
    )
    pair = float(sims.mean()), float(before.mean())
    return [
        row(f"captions alike, {which}", (alike, sims.size), alike / sims.size, "captions", how),
        row(f"similarity by CLIP, {which}", pair, pair[0] / pair[1], "mean cosine", note),
    ]


def _taught(store: RunStore, train: Sequence[Example], steps: int) -> list[Row]:
    before, after = (teacher(world(device), store, train) for device in ("cpu", DEVICE))
    (losses, gradients), (others, own) = map(_gradients, (before, after))
    apart = np.abs(others / losses - 1).max()
    cosine = min(float(torch.cosine_similarity(own[role], gradients[role], 0)) for role in ROLES)
    note = f"a joint step of 8 pairs, float32; losses {apart:.1e} apart at most, gradients of a cosine of {cosine:.6f}"
    pair = float(others.sum()), float(losses.sum())
    rows = [row("sum of the losses, GPU against CPU", pair, pair[0] / pair[1], "nats and squared errors", note)]
    recipe = Recipe(steps=steps, decoder="tiny", seed=1)
    there, here = (sum(curve[-1] for curve in one.run([recipe])[0].losses.values()) for one in (before, after))
    whole, again, halves = (_weights(after, recipe, stops) for stops in ((steps,), (steps,), (steps // 2, steps)))
    repeated, same = (all(map(torch.equal, whole, other)) for other in (again, halves))
    after.run([replace(recipe, connect="gumbel", steps=2)])  # its random stream is the CPU's: must only go through
    note = (
        f"float32, after {steps} joint steps; stopped half way and resumed, the weights on the GPU are "
        f"{'the same' if same else 'not the same'} to the bit; run twice, {'the same' if repeated else 'not the same'}"
    )
    return [*rows, row("last losses of a finetuning, GPU against CPU", (here, there), here / there, "sum", note)]


def teacher(models: Profile, store: RunStore, examples: Sequence[Example]) -> Finetuner:
    """With a vocabulary map that asks no word vectors: nothing that is measured here depends on them."""
    made = Finetuner(models, store, examples, progress=False)
    captioner, pipeline = made._base_models
    texts = [text for example in examples for text in example.references]
    tokenizers, size = (captioner.processor.tokenizer, pipeline.tokenizer), captioner.text_config.vocab_size
    made.vocabulary_map = VocabularyMap.make(*tokenizers, texts, vocab_size=size, by_meaning=False)
    return made


def _gradients(made: Finetuner) -> tuple[np.ndarray, dict[str, torch.Tensor]]:
    """Losses of a joint step, and the gradient of each role's trained weights in one vector."""
    bench = StepCost(made, {"exact": EXACT}).bench
    step = bench.step("joint", EXACT)
    trained = unfreeze(step)
    found = step(bench.batch, bench.images)
    torch.stack(list(found.values())).sum().backward()
    flat = {
        role: torch.cat([p.grad.flatten().cpu() for name, p in trained.items() if name.startswith(role)])
        for role in ROLES
    }
    return np.array([loss.item() for loss in found.values()]), flat


def _weights(made: Finetuner, recipe: Recipe, stops: Sequence[int]) -> list[torch.Tensor]:
    """Trained weights of a run that was stopped at each of these steps, and resumed from its state."""
    with tempfile.TemporaryDirectory() as folder:
        for stop in stops:
            pair, pipeline = made.pair(recipe)
            lessons = made.pairs(pair, pipeline, recipe)
            training = Finetuning(Path(folder), pair, lessons, recipe, {"run": 1}, progress=False).run(stop)
        return [parameter.detach().cpu() for parameter in training.parameters.values()]
