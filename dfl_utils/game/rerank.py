"""The two games with candidates of one's own: captions ranked by what they draw, images by what is read in them.

What comes back of an image, or of a text, depends on it and its own candidates alone: not on what else is asked, and
not on any order. Everything made is kept in the run store, so that a call that was killed goes on where it was.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from dfl_utils.game import own_input
from dfl_utils.game.drawings import Drawings
from dfl_utils.game.loops import Game
from dfl_utils.game.own_input import Picture
from dfl_utils.game.scorer import JUDGES, Scorer
from dfl_utils.models import generator as generators
from dfl_utils.models.similarity import ENCODERS
from dfl_utils.scores import ranking
from dfl_utils.store import blocks
from dfl_utils.store.store import RunStore
from dfl_utils.world import data
from dfl_utils.world.data import Example
from dfl_utils.world.folders import content_id
from dfl_utils.world.profile import Profile

_log = logging.getLogger(__name__)

READERS = tuple(name for name in JUDGES if name != "cider")  # CIDEr weighs words by a whole set of references


@dataclass(frozen=True)
class RankedCaption:
    """A candidate caption of an image.

    Attributes:
        caption: the text.
        similarity: cosine of the image and what the generator draws from the caption, in [-1, 1].
        rank: place among the image's candidates; 0 is the most similar.
        candidate: place in the list that was given.
    """

    caption: str
    similarity: float
    rank: int
    candidate: int
    _load: Callable[[], Image.Image] = field(repr=False, compare=False)

    @property
    def image_hat(self) -> Image.Image:
        """The drawing, from the store or, if it was lost there, drawn again."""
        return self._load()


@dataclass(frozen=True)
class RankedImage:
    """A candidate image of a text.

    Attributes:
        caption_hat: what the captioner reads in the image.
        similarity: of text and reading, by the judge that was asked; higher is more similar.
        rank: place among the text's candidates; 0 is the most similar.
        candidate: place in the list that was given, or number of the drawing.
    """

    caption_hat: str
    similarity: float
    rank: int
    candidate: int
    _load: Callable[[], Image.Image] = field(repr=False, compare=False)

    @property
    def image(self) -> Image.Image:
        """The image: the one that was given, or the drawing from the store."""
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
    own_input.check_options(similarity, ENCODERS, seed, num_candidates)
    own_input.check_list("images", images, Picture)
    roles = ["generator", similarity, *(["captioner"] if captions is None else [])]
    game = own_input.game(profile, captioner, generator, num_inference_steps, store, progress, roles)
    if captions is not None:
        own_input.check_lists("captions", captions, str, len(images))
    examples = [own_input.example(image, game.store) for image in images]
    if captions is None:
        captions = [game.sample_captions([example], num_candidates, seed=seed)[0] for example in examples]
    cut = generators.truncated(game.profile, [text for row in captions for text in row])
    if cut:
        _log.warning("the generator's text encoder sees only the beginning of %d captions: they are longer", cut)
    # Each text once and in one order, so that neither repetition nor order reaches a model.
    texts = [sorted(set(row)) for row in captions]
    seeds = [[_seed(seed, e.image_id, text) for text in row] for e, row in zip(examples, texts, strict=True)]
    drawings = _one_by_one(game, examples, texts, seeds)
    found = []
    for k, (row, sims) in enumerate(zip(captions, _similarities(drawings, similarity), strict=True)):
        places = [texts[k].index(text) for text in row]
        entries = [(text, partial(_drawing, drawings, k, n)) for text, n in zip(row, places, strict=True)]
        found.append(_ranked(RankedCaption, entries, sims[places]))
    return found


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
    own_input.check_options(similarity, READERS, seed, num_candidates, num_beams)
    own_input.check_list("captions", captions, str)
    if images is not None:
        own_input.check_lists("images", images, Picture, len(captions))
    roles = ["captioner", *(["clip"] if similarity == "clip" else []), *(["generator"] if images is None else [])]
    game = own_input.game(profile, captioner, generator, num_inference_steps, store, progress, roles)
    if images is None:
        readings, loaders = _drawn(game, captions, num_candidates, num_beams, seed)
    else:
        readings, loaders = _given(game, images, num_beams)
    scorer = Scorer(game.profile, game.store, [Example(0, Path(), ("no reference weighs here",))])
    found = []
    for caption, row, loads in zip(captions, readings, loaders, strict=True):
        sims = scorer.similarity([caption], [row], [similarity])[similarity][0]
        found.append(_ranked(RankedImage, list(zip(row, loads, strict=True)), sims))
    return found


def _one_by_one(game: Game, examples: Sequence[Example], captions: list[list[str]], seeds: list[list[int]]) -> Drawings:
    """Drawings of which each has a shard of its own: more candidates cost their own drawings, and fewer none."""
    cut = [blocks.Block(slice(k, k + 1), slice(n, n + 1)) for k, row in enumerate(captions) for n in range(len(row))]
    return Drawings(game.workshop, examples, captions, seeds, cut)


def _similarities(drawings: Drawings, name: str) -> list[np.ndarray]:
    """Cosine of each drawing with its original: one array `(N,)` an image."""
    parts = drawings.compare_blocks([name])[name]
    return [np.array(row) for row in _by_image(drawings, [part[0] for part in parts])]


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
    examples = [[own_input.example(image, game.store) for image in row] for row in images]  # all, before any is read
    for row in examples:
        distinct = {e.image_id: e for e in sorted(row, key=lambda e: e.image_id)}
        said = dict(zip(distinct, game.describe(list(distinct.values()), num_beams), strict=True))
        readings.append([said[example.image_id] for example in row])
        loaders.append([partial(data.read_image, example.path) for example in row])
    return readings, loaders


def _ranked(kind: type, entries: list[tuple], sims: np.ndarray) -> list:
    places = ranking.ranks(sims[None])[0]
    rows = [
        kind(text, float(sim), int(rank), n, load)
        for n, ((text, load), sim, rank) in enumerate(zip(entries, sims, places, strict=True))
    ]
    return sorted(rows, key=lambda row: row.rank)


def _drawing(drawings: Drawings, k: int, n: int) -> Image.Image:
    return Image.fromarray(drawings.load(k)[n])


def _seed(seed: int, image_id: int, text: str) -> int:
    return blocks.drawing_seed(blocks.NOISE, seed, image_id, content_id(text.encode()))
