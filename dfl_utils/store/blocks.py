"""How a run is cut into shards, and the random stream that each candidate draws from.

A shard holds the work of `SHARD_IMAGES` images times `BLOCK_CANDIDATES` candidates. Both cuts start at zero and every
seed is named by its image and its place, so a run of few images and few candidates shares its shards with any larger.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

SHARD_IMAGES, BLOCK_CANDIDATES = 16, 10
# Purpose of a random stream: no caption shares one with a drawing, and no drawing of one loop with one of the other.
WORDS, NOISE, PICK, NOISE_OF_TEXT, NOISE_OF_LOSS = 1, 2, 3, 4, 5

Row = TypeVar("Row")


@dataclass(frozen=True, eq=False)  # its slices have no hash
class Block:
    """The images and the candidates of one shard, as slices of a run's."""

    images: slice
    candidates: slice

    def of(self, rows: Sequence[Sequence[Row]]) -> list[list[Row]]:
        """This block's part of a run's `images` lists of N."""
        return [list(row[self.candidates]) for row in rows[self.images]]


def cut(num_images: int, num_candidates: int = 1) -> list[Block]:
    """All blocks, image after image; the last of a row and of a column are short where the numbers do not fit."""
    return [
        Block(slice(image, image + SHARD_IMAGES), slice(n, min(n + BLOCK_CANDIDATES, num_candidates)))
        for image in range(0, num_images, SHARD_IMAGES)
        for n in range(0, num_candidates, BLOCK_CANDIDATES)
    ]


def join(parts: Sequence[np.ndarray], num_candidates: int) -> np.ndarray:
    """The arrays `(images, candidates, ...)` of all blocks, in the order of `cut`, as one `(images, N, ...)`."""
    width = -(-num_candidates // BLOCK_CANDIDATES)
    rows = [np.concatenate(parts[k : k + width], axis=1) for k in range(0, len(parts), width)]
    return np.concatenate(rows)


def join_texts(parts: Sequence[Sequence[str]], num_candidates: int) -> list[list[str]]:
    """As `join`, of blocks whose texts lie flat, image after image: `images` lists of N."""
    width = -(-num_candidates // BLOCK_CANDIDATES)
    sizes = [min(BLOCK_CANDIDATES, num_candidates - k * BLOCK_CANDIDATES) for k in range(width)]
    shaped = [np.array(part, object).reshape(-1, sizes[k % width]) for k, part in enumerate(parts)]
    return join(shaped, num_candidates).tolist()


def image_seeds(seed: int, image_id: int, count: int, purpose: int = NOISE) -> list[int]:
    """`count` 63-bit seeds of an image's drawings; seed n is the same for any count."""
    return [drawing_seed(purpose, seed, image_id, n) for n in range(count)]


def drawing_seed(*stream: int) -> int:
    """63 bits that stand for a named random stream."""
    return int(np.random.SeedSequence(stream).generate_state(1, np.uint64)[0] >> 1)


def caption_streams(seed: int, image_id: int, count: int) -> list[list[int]]:
    """`count` seeds of an image's sampled captions; seed n is the same for any count."""
    return [[WORDS, seed, image_id, n] for n in range(count)]


def pick(seed: int, image_id: int, texts: Sequence[str]) -> str:
    """One of an image's texts, drawn at random; which, depends on the seed, the image id and their number alone."""
    return texts[np.random.default_rng([PICK, seed, image_id]).integers(len(texts))]


def check_seed(seed: int) -> None:
    """ValueError for a negative seed."""
    if seed < 0:
        raise ValueError(f"SEED is {seed}: give a seed of 0 or more.")
