"""The drawings of a run: made block by block, compared with their originals, read back, measured."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from PIL import Image

from dfl_utils.models import similarity
from dfl_utils.models.workshop import ORIGINALS, Workshop
from dfl_utils.store import blocks
from dfl_utils.store.blocks import Block
from dfl_utils.store.store import Held, Job, Kind
from dfl_utils.world.data import Example

READ_BATCH = 32  # drawings that the captioner reads at a time; beam search keeps several sentences of each


@dataclass(frozen=True)
class Images:
    """Drawings, `(images, candidates, H, W, 3)` or `(images, H, W, 3)` uint8."""

    images_hat: np.ndarray


@dataclass(frozen=True)
class Sentences:
    """A captioner's, image after image, candidate after candidate."""

    captions: list[str]


@dataclass(frozen=True)
class Similarities:
    """Cosines of drawings and their originals, `(images, candidates)`."""

    sim: np.ndarray


@dataclass(frozen=True)
class Likelihoods:
    """Log-probability that a captioner gives to captions, a token or in all, `(images, candidates)`."""

    log_likelihood: np.ndarray


@dataclass(frozen=True)
class Features:
    """What fidelity scores read of images, `(..., D)`."""

    features: np.ndarray


IMAGES = Kind("images", Images, travels=False)
SHOWN = Kind("shown-images", Images)  # the drawings of one original that a page shows
SIMILARITY = {
    name: Kind(f"{name}-similarity", Similarities, made_from=(ORIGINALS[name],)) for name in similarity.ENCODERS
}
READINGS, FEATURES = Kind("readings", Sentences), Kind("features", Features)


class Drawings:
    """One drawing a caption and seed. Nothing is drawn before something asks for it.

    Args:
        workshop: models and store.
        examples: the originals.
        captions: one list of N >= 1 for each.
        seeds: one for each caption.
        cut: the blocks that the shards hold; by default those of `blocks.cut`. Small ones are drawn together.
    """

    def __init__(
        self,
        workshop: Workshop,
        examples: Sequence[Example],
        captions: Sequence[Sequence[str]],
        seeds: Sequence[Sequence[int]],
        cut: list[Block] | None = None,
    ):
        self.workshop, self.examples, self.captions, self.seeds = workshop, examples, captions, seeds
        self.blocks = cut or blocks.cut(len(examples), len(captions[0]))
        self._ready: dict[Block, np.ndarray] = {}  # drawn together with another, and not asked for yet

    @cached_property
    def keys(self) -> dict[Block, dict]:
        """What each block's drawings depend on."""
        common = self.workshop.drawing_key()
        return {b: common | {"captions": b.of(self.captions), "seeds": b.of(self.seeds)} for b in self.blocks}

    def draw(self, block: Block) -> np.ndarray:
        """The block's drawings `(images, candidates, H, W, 3)` uint8, from the store or drawn now."""
        return self.workshop.store.get(IMAGES, self.keys[block], partial(self._draw, block)).images_hat

    def _draw(self, block: Block) -> tuple[Images, int]:
        if block not in self._ready:
            self._ready = self._with_the_next(block)
        images = self._ready.pop(block)
        return Images(images.reshape(len(self.keys[block]["captions"]), -1, *images.shape[1:])), len(images)

    def _with_the_next(self, block: Block) -> dict[Block, np.ndarray]:
        """The drawings of a block and of those after it that the store lacks, as many as are drawn at a time."""
        together, room, there = [], self.workshop.generator.draw_batch, self.workshop.store.path
        for one in self.blocks[self.blocks.index(block) :]:
            if one == block or not there(IMAGES, self.keys[one]).exists():
                together.append(one)
                room -= self._size(one)
                if room <= 0:
                    break
        if room < 0 and len(together) > 1:  # the last found no place
            together.pop()
        keys = [self.keys[one] for one in together]
        captions, seeds = ([one for key in keys for row in key[name] for one in row] for name in ("captions", "seeds"))
        ends = np.cumsum([self._size(one) for one in together])
        return dict(zip(together, np.split(self.workshop.generator.draw(captions, seeds), ends[:-1]), strict=True))

    def _size(self, block: Block) -> int:
        return sum(map(len, self.keys[block]["captions"]))

    def load(self, k: int) -> np.ndarray:
        """The N drawings of example k, `(N, H, W, 3)` uint8."""
        k = range(len(self.examples))[k]
        of_image = [block for block in self.blocks if block.images.start <= k < block.images.stop]
        place = k - of_image[0].images.start

        def take():
            return Images(np.concatenate([self.draw(block)[place] for block in of_image]))

        key = {"drawings": [self.source(block) for block in of_image], "place": place}
        return self.workshop.store.get(SHOWN, key, take).images_hat

    def source(self, block: Block) -> dict:
        """The drawings of a block in the key of what is made from them."""
        return IMAGES.key(**self.keys[block])

    def rows(self, parts: Sequence[Sequence]) -> list[list]:
        """What each block gave, `(images, candidates)`, as a list of N for each image."""
        rows = [[] for _ in self.examples]
        for block, part in zip(self.blocks, parts, strict=True):
            for row, values in zip(rows[block.images], part, strict=True):
                row += list(values)
        return rows

    def compare(self, names: Sequence[str]) -> dict[str, np.ndarray | list[list]]:
        """Name, of `similarity.ENCODERS`, -> cosine of every drawing with its original, `(images, N)` float32.

        Lists, where images have different numbers of drawings.
        """
        # Block after block, not encoder after encoder: a kill then leaves finished images, not half-compared ones.
        jobs = [self._comparison(name, block) for block in self.blocks for name in names]
        sims = [content.sim for content in self._fill(jobs, "drawings", len(names))]
        for name in names:  # as in `_fill`: what the originals cost where only cosines were read
            for block in self.blocks:
                key = self.workshop.originals_key(name, self.examples[block.images])
                self.workshop.store.count(ORIGINALS[name], key)
        each = {name: self.rows(sims[k :: len(names)]) for k, name in enumerate(names)}
        return {name: np.array(rows) if len(set(map(len, rows))) == 1 else rows for name, rows in each.items()}

    def describe(self, num_beams: int) -> list[list[str]]:
        """What the captioner says of every drawing, by beam search: `images` lists of N."""
        contents = self.look(READINGS, self.workshop.beam_key(num_beams), partial(self._read, num_beams), "readings")
        texts = [np.array(content.captions, object) for content in contents]
        counts = [len(block.of(self.captions)) for block in self.blocks]
        return self.rows(list(map(np.array_split, texts, counts)))

    def features(self, by: str | None = None) -> np.ndarray:
        """What the fidelity scores read of every drawing, `(images, N, D)` float32.

        By the profile's own extractor, whose features and logits `fidelity.split` takes apart; or by "efficientnet",
        that model's 1,280 features alone.
        """
        contents = self.look(FEATURES, self.workshop.extractor_key(by), partial(self._measure, by), "features")
        return blocks.join([content.features for content in contents], len(self.captions[0]))

    def look(self, kind: Kind[Held], key: dict, make: Callable, what: str, *, originals: bool = False) -> list[Held]:
        """What `make` gives of each block, shards that depend on the key and the drawings, or on the originals, too."""
        jobs = []
        for block in self.blocks:
            beside = self.workshop.images_key(self.examples[block.images]) if originals else {}
            jobs.append(Job(kind, key | beside | {"drawings": self.source(block)}, partial(make, block)))
        return self._fill(jobs, what)

    def _fill(self, jobs: list[Job[Held]], what: str, group: int = 1) -> list[Held]:
        contents = self.workshop.fill(jobs, what, group, len(self.examples))
        for block in self.blocks:  # the drawings' cost belongs to this run also where only their cosines were read
            self.workshop.store.count(IMAGES, self.keys[block])
        return contents

    def _comparison(self, name: str, block: Block) -> Job[Similarities]:
        shop = self.workshop
        key = shop.encoder_key(name) | shop.images_key(self.examples[block.images]) | {"drawings": self.source(block)}
        return Job(SIMILARITY[name], key, partial(self._compare, name, block))

    def _compare(self, name: str, block: Block) -> tuple[Similarities, int]:
        originals = self.workshop.originals(name, self.examples[block.images])
        images = self.draw(block)
        hats = self.workshop.encoder(name).embed(images.reshape(-1, *images.shape[2:]))
        return Similarities(similarity.cosine(originals, hats.reshape(*images.shape[:2], -1))), len(hats)

    def _read(self, num_beams: int, block: Block) -> tuple[Sentences, int]:
        images = self.draw(block)
        pictures = [Image.fromarray(image) for image in images.reshape(-1, *images.shape[2:])]
        texts = []
        for start in range(0, len(pictures), READ_BATCH):
            texts += self.workshop.captioner.describe(pictures[start : start + READ_BATCH], num_beams=num_beams)
        return Sentences(texts), len(texts)

    def _measure(self, by: str | None, block: Block) -> tuple[Features, int]:
        images = self.draw(block)
        rows = self.workshop.extractor(by).features(images.reshape(-1, *images.shape[2:]))
        return Features(rows.reshape(*images.shape[:2], -1)), len(rows)
