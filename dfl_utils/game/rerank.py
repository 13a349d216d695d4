"""The two games with candidates of one's own: captions ranked by what they draw, images by what is read in them; or
either by the models' losses.

What comes back of an image, or of a text, depends on it and its own candidates alone, to a rounding of pixels. All is
kept in the run store: a call that was killed goes on where it was.
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

from dfl_utils.game import denoising, judges
from dfl_utils.game.drawings import Drawings
from dfl_utils.game.loops import Game
from dfl_utils.game.scorer import JUDGES, Scorer
from dfl_utils.models import captioner as captioners
from dfl_utils.models import checkpoint, workshop
from dfl_utils.models import generator as generators
from dfl_utils.models.similarity import ENCODERS
from dfl_utils.scores import embeddings, ranking
from dfl_utils.store import blocks
from dfl_utils.store.store import RunStore
from dfl_utils.world import data
from dfl_utils.world import profile as profiles
from dfl_utils.world.annotations import HALF, content_id, is_text
from dfl_utils.world.data import Example
from dfl_utils.world.profile import Profile

_log = logging.getLogger(__name__)

Picture = Path | str | Image.Image
WHAT = {str: "captions", Picture: "files or Pillow images"}  # a list may hold

# Who ranks captions, and images: -> the models that it asks, beside those of the similarity.
CAPTION_JUDGES = {"drawing": "generator", "denoising": "generator", "likelihood": "captioner"}
IMAGE_JUDGES = {"reading": "captioner", "likelihood": "captioner"}
READERS = tuple(name for name in JUDGES if name != "cider")  # CIDEr weighs words by a whole set of references


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """A candidate of an image or a text."""

    similarity: float  # with what it is ranked for; higher is more similar
    rank: int  # place among the candidates; 0 is the most similar
    candidate: int  # place in the list that was passed, or number of the drawing
    _load: Callable[[], Image.Image] = field(repr=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class RankedCaption(Ranked):
    """A candidate caption; its similarity is the cosine of the image and what the generator draws from it, or what
    another judge says of it."""

    caption: str

    @property
    def image_hat(self) -> Image.Image:
        """The drawing, from the store or, if it was lost there, drawn again."""
        return self._load()


@dataclass(frozen=True, kw_only=True)
class RankedImage(Ranked):
    """A candidate image; its similarity is that of the text and what the captioner reads in it (`caption_hat`, None
    where the judge reads nothing), or the text's log-likelihood."""

    caption_hat: str | None

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
    judge: str = "drawing",
    similarity: str = "clip",
    num_candidates: int = 10,
    seed: int = 0,
    store: RunStore | Path | str | None = None,
    progress: bool = False,
) -> list[list[RankedCaption]]:
    """Rank each image's captions by the similarity of the image and what the generator draws from them (Section 3.2).

    With another judge nothing is drawn, unless an `image_hat` is asked for.

    Args:
        images: files or Pillow images.
        captions: a list for each image, of any lengths from 1. None: the captioner samples `num_candidates` of each.
        profile: a name, or a `Profile` for anything beyond the arguments below; it names judge, device and sizes.
        captioner, generator: replace the profile's: a name that it knows, a folder in the Hugging Face layout, or,
            with a profile that may go online such as `paper`, a hub id.
        judge: `drawing`; `denoising`, minus the generator's loss on the image when told the caption, with the same
            noise for all captions of an image; `likelihood`, the captioner's log p(caption | image), nats, the mean
            over tokens.
        similarity: of images, by which `drawing` compares: `clip` or `dino`.
        seed: starts the noise; a drawing depends on it, its image and its caption alone.
        store: a run store or its folder; None: the usual one.
        progress: show bars.

    Returns:
        For each image its captions, the most similar first; equally similar ones in the order that was given.

    Raises:
        ValueError, TypeError: no images, lists of another number, something that is no caption, an unknown judge,
            similarity, profile or model, a negative seed, a model that the judge cannot ask.
        FileNotFoundError, OSError: an image or a model that is not there or broken. All before anything is drawn.
    """
    _check_options(judge, CAPTION_JUDGES, similarity, ENCODERS, seed, num_candidates)
    check_list("images", images, Picture)
    asked = [CAPTION_JUDGES[judge], *([similarity] if judge == "drawing" else [])]
    roles = list(dict.fromkeys([*asked, *(["captioner"] if captions is None else [])]))
    game = game_of(profile, roles, store, captioner, generator, progress)
    _check_judge(game.profile, judge)
    if captions is not None:
        check_lists("captions", captions, str, len(images))
    examples = [on_disk(image, game.store) for image in images]
    warn_of_photographs(game.profile, roles, examples)
    if captions is None:
        captions = _each(game, "captions", examples, lambda e: game.sample_captions([e], num_candidates, seed=seed)[0])
    if judge != "drawing" and (lone := sum(len(set(row)) == 1 for row in captions)):
        _log.warning("%d images have a single candidate: what %s says of it tells nothing alone", lone, judge)
    if "generator" in asked:
        warn_of_cut(game.profile, ["generator"], [text for row in captions for text in row])
    # Each text once and in one order, so that neither repetition nor order reaches a model.
    texts = [sorted(set(row)) for row in captions]
    name = partial(blocks.drawing_seed, blocks.NOISE, seed)
    seeds = [
        [name(e.image_id, content_id(text.encode())) for text in row] for e, row in zip(examples, texts, strict=True)
    ]
    drawings = _one_by_one(game, examples, texts, seeds)
    if judge == "drawing":
        sims = drawings.compare([similarity])[similarity]
    else:
        by_loss = partial(denoising.scores, game, seed=seed)
        ask = by_loss if judge == "denoising" else game.log_likelihood
        sims = _each(game, judge, list(zip(examples, texts, strict=True)), lambda pair: ask([pair[0]], [pair[1]])[0])
    ranked = []
    for k, row in enumerate(captions):
        places = [texts[k].index(text) for text in row]
        loaders = [partial(_drawing, drawings, k, n) for n in places]
        entries = [{"caption": text, "_load": load} for text, load in zip(row, loaders, strict=True)]
        ranked.append(_ranked(RankedCaption, entries, np.array(sims[k])[places]))
    return ranked


def rerank_images(
    captions: Sequence[str],
    images: Sequence[Sequence[Picture]] | None = None,
    *,
    profile: str | Profile = "mini",
    captioner: str | None = None,
    generator: str | None = None,
    judge: str = "reading",
    similarity: str = "clip",
    num_candidates: int = 10,
    num_beams: int = 3,
    seed: int = 0,
    store: RunStore | Path | str | None = None,
    progress: bool = False,
) -> list[list[RankedImage]]:
    """Rank each text's images by the similarity of the text and what the captioner reads in them (Section 3.3).

    Args:
        captions: the texts.
        images: a list of files or Pillow images for each text, of any lengths from 1. None: the generator draws
            `num_candidates` of each.
        judge: `reading`; `likelihood`, the captioner's log p(text | image), nats, the mean over tokens.
        similarity: of texts, by which `reading` compares: `clip`, `sbert` or `wmd`.
        num_beams: of the captioner's beam search.
        profile, captioner, generator, seed, store, progress: as in `rerank_captions`.

    Returns:
        For each text its images, the most similar first; equally similar ones in the order that was given.

    Raises:
        ValueError, TypeError, FileNotFoundError, OSError: as `rerank_captions`, before any model works.
    """
    _check_options(judge, IMAGE_JUDGES, similarity, READERS, seed, num_candidates, num_beams)
    check_list("captions", captions, str)
    if images is not None:
        check_lists("images", images, Picture, len(captions))
    reading = judge == "reading"
    roles = ["captioner", *(["clip"] if reading and similarity == "clip" else [])]
    roles += ["generator"] if images is None else []
    game = game_of(profile, roles, store, captioner, generator, progress)
    _check_judge(game.profile, judge)
    readers = {*([similarity] if reading else []), *(["generator"] if images is None else [])}
    warn_of_cut(game.profile, sorted(readers & TOKENIZERS.keys()), captions)
    if images is None:
        readings, loaders = _drawn(game, captions, num_candidates, num_beams if reading else None, seed)
    else:
        readings, loaders = _given(game, captions, images, num_beams if reading else None)
    scorer = Scorer(game.profile, game.store, [Example(0, Path(), ("no reference weighs here",))])
    ranked = []
    for caption, row, loads in zip(captions, readings, loaders, strict=True):
        sims = scorer.similarity([caption], [row], [similarity])[similarity][0] if reading else np.array(row)
        texts = row if reading else [None] * len(row)
        entries = [{"caption_hat": text, "_load": load} for text, load in zip(texts, loads, strict=True)]
        ranked.append(_ranked(RankedImage, entries, sims))
    return ranked


def _each(game: Game, what: str, images: Sequence, ask: Callable[[object], object]) -> list:
    """What is asked of each image by itself; one bar for all."""
    progress, game.progress = game.progress, False
    answers = [ask(image) for image in tqdm(images, desc=what, unit="image", disable=not progress)]
    game.progress = progress
    return answers


def warn_of_photographs(models: Profile, roles: Sequence[str], examples: Sequence[Example]) -> None:
    """Say once that the embedded models know their own drawn world alone, where an image is none of its size."""
    small = [role for role in roles if Path(models.locate(getattr(models, role))).is_relative_to(profiles.MINI)]
    side = profiles.PROFILES["mini"].image_size
    if small and any(data.read_image(example.path).size != (side, side) for example in examples):
        _say_once(
            f"The {', '.join(small)} of data/mini know 48 drawn icons and nothing else: of photographs their ranking "
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


@cache
def _say_once(sentence: str) -> None:
    _log.warning(sentence)


def _one_by_one(game: Game, examples: Sequence[Example], captions: list[list[str]], seeds: list[list[int]]) -> Drawings:
    """Drawings of which each has a shard of its own: more candidates cost their own drawings, and fewer none."""
    cut = [blocks.Block(slice(k, k + 1), slice(n, n + 1)) for k, row in enumerate(captions) for n in range(len(row))]
    return Drawings(game, examples, captions, seeds, cut)


def _drawn(game: Game, captions: Sequence[str], count: int, num_beams: int | None, seed: int) -> tuple[list, list]:
    """Readings of `count` drawings of each text, with no beams the text's likelihoods; and what loads the drawings."""
    examples = [Example(content_id(text.encode()), Path(), (text,)) for text in captions]
    seeds = [blocks.image_seeds(seed, example.image_id, count, blocks.NOISE_OF_TEXT) for example in examples]
    drawings = _one_by_one(game, examples, [[text] * count for text in captions], seeds)
    loaders = [[partial(_drawing, drawings, k, n) for n in range(count)] for k in range(len(examples))]
    return drawings.describe(num_beams) if num_beams else judges.likelihood(drawings), loaders


def _given(game: Game, captions: Sequence[str], images: Sequence, num_beams: int | None) -> tuple[list, list]:
    """Readings of the images of each text, with no beams the text's likelihoods; and what loads the images."""
    readings, loaders = [], []
    examples = [[on_disk(image, game.store) for image in row] for row in images]  # all, before any is read
    warn_of_photographs(game.profile, ["captioner"], sum(examples, []))
    for text, row in zip(captions, examples, strict=True):
        distinct = {e.image_id: e for e in sorted(row, key=lambda e: e.image_id)}
        shown = list(distinct.values())
        said = game.describe(shown, num_beams) if num_beams else game.log_likelihood(shown, [[text]] * len(shown))[:, 0]
        of_image = dict(zip(distinct, said, strict=True))
        readings.append([of_image[example.image_id] for example in row])
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


def on_disk(image: Picture, store: RunStore) -> Example:
    """An image on disk, named by its pixels; one that is in memory is kept beside the store's shards."""
    pixels = data.in_memory(image) if isinstance(image, Image.Image) else data.read_image(Path(image))
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


def game_of(profile, roles: Sequence[str], store, captioner=None, generator=None, progress=False) -> Game:
    """The game of the profile with those models in place of its own; those of `roles` are there."""
    find = profiles.load if roles else profiles.configured  # without a model no device is needed
    models = (profile if isinstance(profile, Profile) else find(profile)).pair(captioner, generator)
    for role in roles:
        models.locate(getattr(models, role))
        if models.trained(getattr(models, role)) is None:
            workshop.check(models, role)
    store = store if isinstance(store, RunStore) else RunStore(store)
    return Game(models, store, progress=progress)


def _check_judge(models: Profile, judge: str) -> None:
    """ValueError where the judge cannot ask the profile's models."""
    if judge == "denoising":
        denoising.check(models, denoising.TIMESTEPS)
    if judge == "likelihood" and not captioners.choose(models).gives_likelihood:
        raise ValueError(
            f"judge is 'likelihood', and {models.captioner} cannot be asked how likely it finds a given caption: take "
            "a captioner of the kind blip, blip-2, git or vision-encoder-decoder, or another judge."
        )


def _check_options(judge: str, judges: Iterable, similarity: str, known: Iterable, seed: int, *counts: int) -> None:
    blocks.check_seed(seed)
    if judge not in judges:
        raise ValueError(f"judge is {judge!r}: choose one of {', '.join(judges)}.")
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
            raise ValueError(f"{name}[{k}] holds {HALF}: write it anew.")


def check_lists(name: str, rows: object, kind: type, count: int) -> None:
    """Refuse what is not `count` such lists (TypeError, ValueError)."""
    if isinstance(rows, kind | str) or not isinstance(rows, Sequence) or len(rows) != count:
        found = f"{len(rows)} entries" if isinstance(rows, list | tuple) else f"type {type(rows).__name__}"
        raise ValueError(f"{name} has {found} for {count} images or texts: give a list of {WHAT[kind]} for each.")
    for k, row in enumerate(rows):
        check_list(f"{name}[{k}]", row, kind)
