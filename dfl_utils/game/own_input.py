"""What is given to be reranked: checked, named by its content and put on disk before any model works."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from dfl_utils.game.loops import Game
from dfl_utils.store import blocks
from dfl_utils.store.store import RunStore
from dfl_utils.world import data
from dfl_utils.world import profile as profiles
from dfl_utils.world.data import Example, to_rgb
from dfl_utils.world.folders import content_id, is_text
from dfl_utils.world.profile import Profile

Picture = Path | str | Image.Image
WHAT = {str: "captions", Picture: "files or Pillow images"}  # a list may hold


def example(image: Picture, store: RunStore) -> Example:
    """An image on disk, named by its pixels; one that is in memory is kept beside the store's shards."""
    pixels = to_rgb(image) if isinstance(image, Image.Image) else data.read_image(Path(image))
    image_id = content_id(str(pixels.size).encode() + pixels.tobytes())
    if not isinstance(image, Image.Image):
        return Example(image_id, Path(image), ())
    path = store.root / "originals" / f"{image_id:013x}.png"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        pixels.save(part, "PNG")
        part.replace(path)
    return Example(image_id, path, ())


def game(profile, captioner, generator, steps, store, progress, roles: Sequence[str]) -> Game:
    """The game of the profile with those models in place of its own; those of `roles` are there."""
    if steps is not None and steps < 1:
        raise ValueError(f"num_inference_steps is {steps}: give at least 1, or None for the profile's.")
    models = profile if isinstance(profile, Profile) else profiles.load(profile)
    if captioner is not None:
        named = captioner in models.captioners
        models = models.pair(captioner=captioner) if named else replace(models, captioner=str(captioner))
    if generator is not None:
        models = models.with_generator(generator)
    for role in roles:
        models.locate(getattr(models, role))
    store = store if isinstance(store, RunStore) else RunStore(store)
    return Game(models, store, num_inference_steps=steps, progress=progress)


def check_options(similarity: str, known: Iterable[str], seed: int, *counts: int) -> None:
    blocks.check_seed(seed)
    if similarity not in known:
        raise ValueError(f"similarity is {similarity!r}: choose one of {', '.join(known)}.")
    if min(counts) < 1:
        raise ValueError(f"num_candidates or num_beams is {min(counts)}: give at least 1 of each.")


def check_list(name: str, values: object, kind: type) -> None:
    if isinstance(values, kind | str) or not isinstance(values, Sequence):
        raise TypeError(f"{name} is of type {type(values).__name__}: give a list of {WHAT[kind]}.")
    if not values:
        raise ValueError(f"{name} is empty: give a list of {WHAT[kind]}.")
    for k, value in enumerate(values):
        if not isinstance(value, kind):
            raise TypeError(f"{name}[{k}] is of type {type(value).__name__}: {name} is a list of {WHAT[kind]}.")
        if isinstance(value, str) and not value.strip():
            raise ValueError(f"{name}[{k}] is blank: write something, or leave it out.")
        if isinstance(value, str) and not is_text(value):
            raise ValueError(f"{name}[{k}] holds half a character, which no text of UTF-8 has: write it anew.")


def check_lists(name: str, rows: object, kind: type, count: int) -> None:
    if isinstance(rows, kind | str) or not isinstance(rows, Sequence) or len(rows) != count:
        found = f"{len(rows)} entries" if isinstance(rows, list | tuple) else f"type {type(rows).__name__}"
        raise ValueError(f"{name} has {found} for {count} to rank for: give a list of {WHAT[kind]} for each.")
    for k, row in enumerate(rows):
        check_list(f"{name}[{k}]", row, kind)
