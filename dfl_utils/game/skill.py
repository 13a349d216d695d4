"""How good a painter a generator is: whether it draws the thing and the colour that a prompt asks for, by the probe."""

import random
from dataclasses import dataclass
from functools import partial

import numpy as np

from dfl_utils.models.fidelity import Referee
from dfl_utils.models.workshop import Workshop
from dfl_utils.store.store import Kind
from dfl_utils.world import scenes


@dataclass(frozen=True)
class Drawn:
    """Whether each drawing shows what was asked for, `(prompts,)` bool."""

    things: np.ndarray
    colours: np.ndarray


SKILL = Kind("skill", Drawn)


def prompts(count: int, things: int, seed: str) -> tuple[list[str], list[list[str]], list[list[str]]]:
    """Prompts with their categories and colours; every category equally often."""
    rng = random.Random(seed)
    texts, nouns, colours = [], [], []
    for k in range(count):
        first = scenes.CATEGORIES[k % len(scenes.CATEGORIES)]
        chosen = [first, rng.choice([c for c in scenes.CATEGORIES if c != first])][:things]
        paint = rng.sample(tuple(scenes.COLOURS), things)
        phrases = [("an " if c[0] == "o" else "a ") + f"{c} {noun}" for c, noun in zip(paint, chosen, strict=True)]
        joint = rng.choice((" to the left of ", " above "))
        texts.append(joint.join(phrases) + f" on a {rng.choice(tuple(scenes.GROUNDS))} background")
        nouns.append(chosen)
        colours.append(paint)
    return texts, nouns, colours


def right(referee: Referee, images: np.ndarray, truth: list[list[str]]) -> np.ndarray:
    """Whether the k likeliest labels of their kind (categories, or `colour:`) are exactly the k true ones, `(B,)`."""
    kind = truth[0][0].partition(":")[1] and "colour:"
    places = [k for k, name in enumerate(referee.labels) if (name.startswith(kind) if kind else ":" not in name)]
    order = np.argsort(-referee.logits(images)[:, places], axis=1, kind="stable")
    names = [referee.labels[k] for k in places]
    return np.array([{names[k] for k in row[: len(set(t))]} == set(t) for row, t in zip(order, truth, strict=True)])


def of_single_things(workshop: Workshop, count: int, seed: int = 0) -> Drawn:
    """What the probe sees in one drawing each of `count` prompts that ask for one coloured thing, kept in the store.

    ValueError: a profile without a probe.
    """
    profile = workshop.profile
    if profile.probe is None:
        raise ValueError(f"Profile {profile.name!r} has no probe to see what was drawn: take the profile mini.")
    texts, nouns, colours = prompts(count, 1, f"skill/{seed}")
    seeds = [random.Random(f"skill/{seed}/{k}").getrandbits(62) for k in range(count)]
    settings = {name: getattr(profile, name) for name in ("num_inference_steps", "guidance_scale", "image_size")}
    models = {role: workshop.made_by(role) for role in ("generator", "probe")}
    key = models | settings | {"prompts": texts, "seeds": seeds}
    return workshop.store.get(SKILL, key, partial(_look, workshop, texts, seeds, nouns, colours))


def _look(workshop: Workshop, texts, seeds, nouns, colours) -> tuple[Drawn, int]:
    images, paint = workshop.generator.draw(texts, seeds), [[f"colour:{one}" for one in row] for row in colours]
    return Drawn(right(workshop.referee, images, nouns), right(workshop.referee, images, paint)), len(texts)
