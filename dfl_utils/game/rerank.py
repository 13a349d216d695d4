"""The two games with candidates of one's own: captions ranked by what they draw, images by what is read in them.

What comes back of an image, or of a text, depends on it and its own candidates alone: not on what else is asked, and
not on any order. Everything made is kept in the run store, so that a call that was killed goes on where it was.
"""

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from dfl_utils.game.drawings import Drawings
from dfl_utils.game.loops import Game
from dfl_utils.game.scorer import JUDGES, Scorer
from dfl_utils.models import checkpoint, workshop
from dfl_utils.models import generator as generators
from dfl_utils.models.similarity import ENCODERS
from dfl_utils.scores import embeddings, ranking
from dfl_utils.store import blocks
from dfl_utils.store.store import RunStore
from dfl_utils.world import data
from dfl_utils.world import profile as profiles
from dfl_utils.world.annotations import content_id, is_text
from dfl_utils.world.data import Example, to_rgb
from dfl_utils.world.profile import Profile

_log = logging.getLogger(__name__)

Picture = Path | str | Image.Image
WHAT = {str: "captions", Picture: "files or Pillow images"}  # a list may hold

READERS = tuple(name for name in JUDGES if name != "cider")  # CIDEr weighs words by a whole set of references


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """A candidate of an image or a text.

    Attributes:
        similarity: with what it is ranked for; higher is more similar.
        rank: place among the candidates; 0 is the most similar.
        candidate: place in the list that was passed, or number of the drawing.
    """

    similarity: float
    rank: int
    candidate: int
    _load: Callable[[], Image.Image] = field(repr=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class RankedCaption(Ranked):
    """A candidate caption; its similarity is the cosine of the image and what the generator draws from it."""

    caption: str

    @property
    def image_hat(self) -> Image.Image:
        """The drawing, from the store or, if it was lost there, drawn again."""
        return self._load()


@dataclass(frozen=True, kw_only=True)
class RankedImage(Ranked):
    """A candidate image; its similarity is that of the text and what the captioner reads in it, by the judge."""

    caption_hat: str

    @property
    def image(self) -> Image.Image:
        """The image: the one that was passed, or the drawing from the store."""
        return self._load()


def rerank_captions(
    images: Sequence[Picture],
    captions: Sequence[Sequence[str]] | None = None,
    *,
    profile: str | Profile = "mini",
    captioner: str | None = None,
    generator: str | None = None,
    similarity: str = "clip",
    num_candidates: int = 10,
    num_inference_steps: int | None = None,
    seed: int = 0,
    store: RunStore | Path | str | None = None,
    progress: bool = False,
) -> list[list[RankedCaption]]:
    """Rank each image's captions by the similarity of the image and what the generator draws from them (Section 3.2).

    Args:
        images: files or Pillow images.
        captions: a list for each image, of any lengths from 1. None: the captioner samples `num_candidates` of each.
        profile: a name, or a `Profile` for anything beyond the arguments below; it names judge, device and sizes.
        captioner, generator: replace the profile's: a name that it knows, a folder in the Hugging Face layout, or,
            with a profile that may go online such as `paper`, a hub id.
        similarity: `clip` or `dino`.
        num_inference_steps: of the generator; None: the profile's.
        seed: starts the noise; a drawing depends on it, its image and its caption alone.
        store: a run store or its folder; None: the usual one.
        progress: show bars.

    Returns:
        For each image its captions, the most similar first; equally similar ones in the order that was given.

    Raises:
        ValueError, TypeError: no images, lists of another number, something that is no caption, an unknown similarity,
            profile or model, a negative seed.
        FileNotFoundError, OSError: an image or a model that is not there or broken. All before anything is drawn.
    """
    _check_options(similarity, ENCODERS, seed, num_candidates)
    check_list("images", images, Picture)
    roles = ["generator", similarity, *(["captioner"] if captions is None else [])]
    game = game_of(profile, captioner, generator, num_inference_steps, store, progress, roles)
    if captions is not None:
        check_lists("captions", captions, str, len(images))
    examples = [on_disk(image, game.store) for image in images]
    warn_of_photographs(game.profile, roles, examples)
    if captions is None:
        captions = _sampled(game, examples, num_candidates, seed)
    warn_of_cut(game.profile, ["generator"], [text for row in captions for text in row])
    # Each text once and in one order, so that neither repetition nor order reaches a model.
    texts = [sorted(set(row)) for row in captions]
    seeds = [[_seed(seed, e.image_id, text) for text in row] for e, row in zip(examples, texts, strict=True)]
    drawings = _one_by_one(game, examples, texts, seeds)
    cosines = _by_image(drawings, [part[0] for part in drawings.compare_blocks([similarity])[similarity]])
    ranked = []
    for k, row in enumerate(captions):
        places = [texts[k].index(text) for text in row]
        loaders = [partial(_drawing, drawings, k, n) for n in places]
        entries = [{"caption": text, "_load": load} for text, load in zip(row, loaders, strict=True)]
        ranked.append(_ranked(RankedCaption, entries, np.array(cosines[k])[places]))
    return ranked


def rerank_images(
    captions: Sequence[str],
    images: Sequence[Sequence[Picture]] | None = None,
    *,
    profile: str | Profile = "mini",
    captioner: str | None = None,
    generator: str | None = None,
    similarity: str = "clip",
    num_candidates: int = 10,
    num_beams: int = 3,
    num_inference_steps: int | None = None,
    seed: int = 0,
    store: RunStore | Path | str | None = None,
    progress: bool = False,
) -> list[list[RankedImage]]:
    """Rank each text's images by the similarity of the text and what the captioner reads in them (Section 3.3).

    Args:
        captions: the texts.
        images: a list of files or Pillow images for each text, of any lengths from 1. None: the generator draws
            `num_candidates` of each.
        similarity: `clip`, `sbert` or `wmd`, of texts.
        num_beams: of the captioner's beam search.
        profile, captioner, generator, num_inference_steps, seed, store, progress: as in `rerank_captions`.

    Returns:
        For each text its images, the most similar first; equally similar ones in the order that was given.

    Raises:
        ValueError, TypeError, FileNotFoundError, OSError: as `rerank_captions`, before any model works.
    """
    _check_options(similarity, READERS, seed, num_candidates, num_beams)
    check_list("captions", captions, str)
    if images is not None:
        check_lists("images", images, Picture, len(captions))
    roles = ["captioner", *(["clip"] if similarity == "clip" else []), *(["generator"] if images is None else [])]
    game = game_of(profile, captioner, generator, num_inference_steps, store, progress, roles)
    readers = {similarity, *(["generator"] if images is None else [])}
    warn_of_cut(game.profile, sorted(readers & TOKENIZERS.keys()), captions)
    if images is None:
        readings, loaders = _drawn(game, captions, num_candidates, num_beams, seed)
    else:
        readings, loaders = _given(game, images, num_beams)
    scorer = Scorer(game.profile, game.store, [Example(0, Path(), ("no reference weighs here",))])
    ranked = []
    for caption, row, loads in zip(captions, readings, loaders, strict=True):
        sims = scorer.similarity([caption], [row], [similarity])[similarity][0]
        entries = [{"caption_hat": text, "_load": load} for text, load in zip(row, loads, strict=True)]
        ranked.append(_ranked(RankedImage, entries, sims))
    return ranked


def _sampled(game: Game, examples: Sequence[Example], count: int, seed: int) -> list[list[str]]:
    """Candidates of the captioner, each image's by itself; one bar for all."""
    progress, game.workshop.progress = game.workshop.progress, False
    bar = tqdm(examples, desc="captions", unit="image", disable=not progress)
    captions = [game.sample_captions([example], count, seed=seed)[0] for example in bar]
    game.workshop.progress = progress
    return captions


def warn_of_photographs(models: Profile, roles: Sequence[str], examples: Sequence[Example]) -> None:
    """Say once that the embedded models know their own drawn world alone, where an image is none of its size."""
    own = [role for role in roles if Path(models.locate(getattr(models, role))).is_relative_to(profiles.MINI)]
    world = profiles.PROFILES["mini"].image_size
    if own and any(_size(example.path) != (world, world) for example in examples):
        _say_once(
            f"The {', '.join(own)} of data/mini know 48 drawn icons and nothing else: of photographs their ranking "
            "says nothing; take the profile paper, or models of your own."
        )


TOKENIZERS = {  # of the text encoders that cut a long text
    "generator": generators.tokenizer,
    "clip": embeddings.clip_tokenizer,
    "sbert": lambda models: embeddings.sbert_tokenizer(),
}


def warn_of_cut(models: Profile, readers: Iterable[str], texts: Sequence[str]) -> None:
    """Say which texts the readers, of `TOKENIZERS`, see only in part."""
    for reader in readers:
        tokenizer = TOKENIZERS[reader](models)
        if cut := checkpoint.too_long(tokenizer, texts):
            said = "the text encoder of %s reads only the first %d tokens of %d longer texts, such as %r"
            _log.warning(said, reader, tokenizer.model_max_length, len(cut), cut[0])


def _size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


@cache
def _say_once(sentence: str) -> None:
    _log.warning(sentence)


def _one_by_one(game: Game, examples: Sequence[Example], captions: list[list[str]], seeds: list[list[int]]) -> Drawings:
    """Drawings of which each has a shard of its own: more candidates cost their own drawings, and fewer none."""
    cut = [blocks.Block(slice(k, k + 1), slice(n, n + 1)) for k, row in enumerate(captions) for n in range(len(row))]
    return Drawings(game.workshop, examples, captions, seeds, cut)


def _by_image(drawings: Drawings, parts: list) -> list[list]:
    """What each block gave, image by image."""
    rows = [[] for _ in drawings.examples]
    for block, part in zip(drawings.blocks, parts, strict=True):
        rows[block.images.start] += list(part)
    return rows


def _drawn(game: Game, captions: Sequence[str], count: int, num_beams: int, seed: int) -> tuple[list, list]:
    """Readings of `count` drawings of each text, and what loads the drawings."""
    examples = [Example(content_id(text.encode()), Path(), (text,)) for text in captions]
    seeds = [blocks.image_seeds(seed, example.image_id, count, blocks.NOISE_OF_TEXT) for example in examples]
    drawings = _one_by_one(game, examples, [[text] * count for text in captions], seeds)
    loaders = [[partial(_drawing, drawings, k, n) for n in range(count)] for k in range(len(examples))]
    return _by_image(drawings, drawings.describe_blocks(num_beams)), loaders


def _given(game: Game, images: Sequence[Sequence[Picture]], num_beams: int) -> tuple[list, list]:
    """Readings of the images of each text, and what loads the images."""
    readings, loaders = [], []
    examples = [[on_disk(image, game.store) for image in row] for row in images]  # all, before any is read
    warn_of_photographs(game.profile, ["captioner"], sum(examples, []))
    for row in examples:
        distinct = {e.image_id: e for e in sorted(row, key=lambda e: e.image_id)}
        said = dict(zip(distinct, game.describe(list(distinct.values()), num_beams), strict=True))
        readings.append([said[example.image_id] for example in row])
        loaders.append([partial(data.read_image, example.path) for example in row])
    return readings, loaders


def _ranked(kind: type, entries: list[dict], sims: np.ndarray) -> list:
    """The candidates, the most similar first; of equally similar ones, the first in the list that was passed."""
    ranked = zip(entries, sims, ranking.ranks(sims[None])[0], strict=True)
    rows = [kind(**entry, similarity=float(sim), rank=int(rank), candidate=n)
            for n, (entry, sim, rank) in enumerate(ranked)]  # fmt: skip
    return sorted(rows, key=lambda row: row.rank)


def _drawing(drawings: Drawings, k: int, n: int) -> Image.Image:
    return Image.fromarray(drawings.load(k)[n])


def _seed(seed: int, image_id: int, text: str) -> int:
    return blocks.drawing_seed(blocks.NOISE, seed, image_id, content_id(text.encode()))


def on_disk(image: Picture, store: RunStore) -> Example:
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


def game_of(profile, captioner, generator, steps, store, progress, roles: Sequence[str]) -> Game:
    """The game of the profile with those models in place of its own; those of `roles` are there."""
    if steps is not None and steps < 1:
        raise ValueError(f"num_inference_steps is {steps}: give at least 1, or None for the profile's.")
    find = profiles.load if roles else profiles.configured  # without a model no device is needed
    models = (profile if isinstance(profile, Profile) else find(profile)).pair(captioner, generator)
    for role in roles:
        models.locate(getattr(models, role))
        if models.trained(getattr(models, role)) is None:
            workshop.check(models, role)
    store = store if isinstance(store, RunStore) else RunStore(store)
    return Game(models, store, num_inference_steps=steps, progress=progress)


def _check_options(similarity: str, known: Iterable[str], seed: int, *counts: int) -> None:
    blocks.check_seed(seed)
    if similarity not in known:
        raise ValueError(f"similarity is {similarity!r}: choose one of {', '.join(known)}.")
    if min(counts) < 1:
        raise ValueError(f"num_candidates or num_beams is {min(counts)}: give at least 1 of each.")


def check_list(name: str, values: object, kind: type) -> None:
    """Refuse what is no list of such values, at least one and none blank (TypeError, ValueError)."""
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
    """Refuse what is not `count` such lists (TypeError, ValueError)."""
    if isinstance(rows, kind | str) or not isinstance(rows, Sequence) or len(rows) != count:
        found = f"{len(rows)} entries" if isinstance(rows, list | tuple) else f"type {type(rows).__name__}"
        raise ValueError(f"{name} has {found} for {count} images or texts: give a list of {WHAT[kind]} for each.")
    for k, row in enumerate(rows):
        check_list(f"{name}[{k}]", row, kind)
