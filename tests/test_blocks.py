"""The cut of a run into shards and its random streams: what a larger run shares with a smaller."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfl_utils.store import blocks
from dfl_utils.store.blocks import caption_streams, cut, image_seeds, join, join_texts, pick


def test_the_cut_by_hand():
    found = [(b.images.start, b.images.stop, b.candidates.start, b.candidates.stop) for b in cut(18, 12)]
    assert found == [(0, 16, 0, 10), (0, 16, 10, 12), (16, 32, 0, 10), (16, 32, 10, 12)]
    rows = [[10 * image + n for n in range(12)] for image in range(18)]
    assert cut(18, 12)[3].of(rows) == [[170, 171], [180, 181]]


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.integers(1, 50), st.integers(1, 35))
def test_blocks_joined_are_the_whole(images, candidates):
    whole = np.arange(images * candidates * 2).reshape(images, candidates, 2)
    parts = [whole[block.images, block.candidates] for block in cut(images, candidates)]
    np.testing.assert_array_equal(join(parts, candidates), whole)
    texts = whole[..., 0].astype(str).tolist()
    flat = [[text for row in block.of(texts) for text in row] for block in cut(images, candidates)]
    assert join_texts(flat, candidates) == texts


def test_seeds_are_stable_prefixes_and_shared_by_no_two_purposes():
    assert image_seeds(0, 7, 3)[:2] == image_seeds(0, 7, 2)
    assert caption_streams(0, 7, 2) == [[blocks.WORDS, 0, 7, 0], [blocks.WORDS, 0, 7, 1]]
    assert len(set(image_seeds(0, 7, 50)) | set(image_seeds(0, 8, 50))) == 100
    assert all(0 <= seed < 2**63 for seed in image_seeds(3, 4, 50))
    assert not set(image_seeds(0, 7, 50)) & set(image_seeds(0, 7, 50, blocks.NOISE_OF_TEXT))


def test_a_pick_depends_on_seed_and_image_alone_and_reaches_every_text():
    texts = ("a", "b", "c")
    assert pick(1, 7, texts) == pick(1, 7, texts)
    drawn = [pick(0, image, texts) for image in range(300)]
    assert all(70 < drawn.count(text) < 130 for text in texts)
    assert drawn != [pick(1, image, texts) for image in range(300)]


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="SEED is -1: give a seed of 0 or more"):
        blocks.check_seed(-1)
