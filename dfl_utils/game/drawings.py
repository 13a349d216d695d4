"""The drawings of a run: made block by block, compared with their originals, read back, measured."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from PIL import Image

from dfl_utils.models import similarity
from dfl_utils.models.workshop import ORIGINALS, Workshop
from dfl_utils.store import blocks
from dfl_utils.store.blocks import Block
from dfl_utils.store.store import Job, Kind
from dfl_utils.world.data import Example

IMAGES = Kind("images", travels=False)
SHOWN = Kind("shown-images")  # the drawings of one original that a page shows
SIMILARITY = {name: Kind(f"{name}-similarity", made_from=(ORIGINALS[name],)) for name in similarity.ENCODERS}
READINGS, FEATURES = Kind("readings"), Kind("features")
READ_BATCH = 32  # drawings that the captioner reads at a time; beam search keeps several sentences of each


class Drawings:
    """One drawing a caption and seed. Nothing is drawn before something asks for it.

    Args:
        workshop: models and store.
        examples: the originals.
        captions: one list of N >= 1 for each.
        seeds: one for each caption.
    """

    def __init__(
        self,
        workshop: Workshop,
        examples: Sequence[Example],
        captions: Sequence[Sequence[str]],
        seeds: Sequence[Sequence[int]],
    ):
        self.workshop, self.examples, self.captions, self.seeds = workshop, examples, captions, seeds
        self.num_candidates = len(captions[0])
        self.blocks = blocks.cut(len(examples), self.num_candidates)

    @cached_property
    def keys(self) -> dict[Block, dict]:
        """What each block's drawings depend on."""
        profile = self.workshop.profile
        common = self.workshop.made_by("generator") | {
            "num_inference_steps": profile.num_inference_steps,
            "guidance_scale": profile.guidance_scale,
            "image_size": profile.image_size,
        }
        return {b: common | {"captions": b.of(self.captions), "seeds": b.of(self.seeds)} for b in self.blocks}

    def draw(self, block: Block) -> np.ndarray:
        """The block's drawings `(images, candidates, H, W, 3)` uint8, from the store or drawn now."""
        key = self.keys[block]

        def make():
            flat = [text for row in key["captions"] for text in row], [seed for row in key["seeds"] for seed in row]
            images = self.workshop.generator.draw(*flat)
            return {"images_hat": images.reshape(len(key["captions"]), -1, *images.shape[1:])}, len(images)

        return self.workshop.store.get(IMAGES, key, make)["images_hat"]

    def load(self, k: int) -> np.ndarray:
        """The N drawings of example k, `(N, H, W, 3)` uint8."""
        k = range(len(self.examples))[k]
        own = [block for block in self.blocks if block.images.start <= k < block.images.stop]
        key = {"drawings": [self.source(block) for block in own], "place": k - own[0].images.start}

        def take():
            return {"images_hat": np.concatenate([self.draw(block)[key["place"]] for block in own])}

        return self.workshop.store.get(SHOWN, key, take)["images_hat"]

    def source(self, block: Block) -> dict:
        """The drawings of a block in the key of what is made from them."""
        return IMAGES.key(**self.keys[block])

    def compare(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Encoder name -> cosine of every drawing with its original, `(images, N)` float32.

        Raises:
            ValueError: a name that is no encoder, or none.
        """
        unknown = set(names) - similarity.ENCODERS.keys()
        if unknown or not names:
            raise ValueError(f"similarities must name some of {', '.join(similarity.ENCODERS)}, not {list(names)}.")
        # Block after block, not encoder after encoder: a kill then leaves finished images, not half-compared ones.
        jobs = [self._comparison(name, block) for block in self.blocks for name in names]
        sims = [content["sim"] for content in self._fill(jobs, "drawings", len(names))]
        shop = self.workshop
        for name in names:  # as in `_fill`: what the originals cost where only cosines were read
            for block in self.blocks:
                shop.store.count(ORIGINALS[name], shop.originals_key(name, self.examples[block.images]))
        return {name: blocks.join(sims[k :: len(names)], self.num_candidates) for k, name in enumerate(names)}

    def describe(self, num_beams: int) -> list[list[str]]:
        """What the captioner says of every drawing, by beam search: `images` lists of N."""
        found = self._fill([self._reading(block, num_beams) for block in self.blocks], "readings")
        return blocks.join_texts([content["captions"] for content in found], self.num_candidates)

    def features(self) -> np.ndarray:
        """The fidelity extractor's features and logits of every drawing, `(images, N, D)` float32."""
        found = self._fill([self._measurement(block) for block in self.blocks], "features")
        return blocks.join([content["features"] for content in found], self.num_candidates)

    def _fill(self, jobs: list[Job], what: str, group: int = 1) -> list[dict]:
        contents = self.workshop.fill(jobs, what, group)
        for block in self.blocks:  # the drawings' cost belongs to this run also where only their cosines were read
            self.workshop.store.count(IMAGES, self.keys[block])
        return contents

    def _comparison(self, name: str, block: Block) -> Job:
        shop, part = self.workshop, self.examples[block.images]

        def compare():
            original = shop.originals(name, part)
            images = self.draw(block)
            hats = shop.encoder(name).embed(images.reshape(-1, *images.shape[2:]))
            return {"sim": similarity.cosine(original, hats.reshape(*images.shape[:2], -1))}, len(hats)

        key = shop.encoder_key(name) | shop.images_key(part) | {"drawings": self.source(block)}
        return SIMILARITY[name], key, compare

    def _reading(self, block: Block, num_beams: int) -> Job:
        def describe():
            images = self.draw(block)
            pictures = [Image.fromarray(image) for image in images.reshape(-1, *images.shape[2:])]
            batches = (pictures[k : k + READ_BATCH] for k in range(0, len(pictures), READ_BATCH))
            texts = [text for batch in batches for text in self.workshop.captioner.describe(batch, num_beams=num_beams)]
            return {"captions": texts}, len(texts)

        key = self.workshop.captioner_key() | {"num_beams": num_beams, "drawings": self.source(block)}
        return READINGS, key, describe

    def _measurement(self, block: Block) -> Job:
        def measure():
            images = self.draw(block)
            rows = self.workshop.extractor.features(images.reshape(-1, *images.shape[2:]))
            return {"features": rows.reshape(*images.shape[:2], -1)}, len(rows)

        return FEATURES, self.workshop.extractor_key() | {"drawings": self.source(block)}, measure
