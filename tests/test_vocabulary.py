"""The tokenizer transformation: maps and alignments worked out by hand, the census, drawings of token ids."""

from collections import Counter

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from dfl_utils.game import token_drawings
from dfl_utils.models.workshop import Workshop
from dfl_utils.scores.ranking import bootstrap_interval
from dfl_utils.store.store import RunStore
from dfl_utils.training import census, vocabulary
from dfl_utils.training.census import Census, Cuts
from dfl_utils.training.vocabulary import VocabularyMap
from dfl_utils.world import profile
from dfl_utils.world.profile import MINI

CAPTIONS = ["a giraffe eats leaves", "two giraffes and a giraffe", "a man at a computer", "A dog, and two cats."]


def tokenizer(name: str):
    return AutoTokenizer.from_pretrained(MINI / name, local_files_only=True)


@pytest.fixture(scope="module")
def bert():
    return tokenizer("blip-base")


@pytest.fixture(scope="module")
def bpe():
    return tokenizer("blip2")


@pytest.fixture(scope="module")
def clip():
    return tokenizer("stable-diffusion/tokenizer")


def make(ours, theirs, captions=(), **options) -> VocabularyMap:
    return VocabularyMap.make(ours, theirs, captions, **{"by_meaning": False} | options)


@pytest.fixture(scope="module")
def ruled(bert, clip):
    return make(bert, clip)


@pytest.fixture(scope="module")
def ruled_bpe(bpe, clip):
    return make(bpe, clip)


@pytest.fixture(scope="module")
def learned(bert, clip):
    return make(bert, clip, CAPTIONS)


def becomes(made, ours, theirs, token: str) -> tuple[str, str]:
    index = ours.get_vocab()[token]
    return theirs.convert_ids_to_tokens(int(made.index[index])), made.how[index]


# --- the rule ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("token", "target", "how"),
    [
        ("dog", "dog</w>", "rule"),
        ("##raf", "raf</w>", "rule"),
        ("kazakh", "kazakh", "rule"),  # CLIP has it inside of words alone
        ("£", "Â£</w>", "rule"),  # two bytes, in CLIP's letters for them
        ("computer", "compu", "piece"),
        ("1990s", "1</w>", "piece"),  # the first of equally long ones
        ("[DEC]", "<|startoftext|>", "special"),
        ("[unused5]", "<|endoftext|>", "special"),
        ("[UNK]", ",</w>", "special"),
    ],
)
def test_a_wordpiece_follows_the_rule(ruled, bert, clip, token, target, how):
    assert becomes(ruled, bert, clip, token) == (target, how)


@pytest.mark.parametrize(
    ("token", "target", "how"),
    [
        ("Ġdog", "dog</w>", "rule"),
        ("A", "a</w>", "rule"),
        ("<pad>", "<|endoftext|>", "special"),
        ("Ġ", ",</w>", "piece"),  # nothing that CLIP reads
    ],
)
def test_a_byte_level_token_follows_the_rule(ruled_bpe, bpe, clip, token, target, how):
    assert becomes(ruled_bpe, bpe, clip, token) == (target, how)


def test_spare_rows_end_the_text(bert, clip):
    made = make(bert, clip, vocab_size=30_530)
    assert made.index.shape == (30_530,) and made.index[30_524:].tolist() == [49_407] * 6
    assert set(made.how[30_524:]) == {"special"}


# --- learned from captions --------------------------------------------------------------------------------
def test_pieces_become_the_word_that_covers_them(learned, bert, clip):
    assert bert.tokenize("giraffe") == ["gi", "##raf", "##fe"] and clip.tokenize("giraffe") == ["giraffe</w>"]
    assert [becomes(learned, bert, clip, token) for token in ("gi", "##raf", "##fe")] == [
        ("giraffe</w>", "learned")
    ] * 3
    plain = make(bert, clip, CAPTIONS, covering=False)
    assert becomes(plain, bert, clip, "gi") == ("gi</w>", "rule")


def test_the_majority_of_equal_characters_wins(bert, clip):
    assert bert.tokenize("surfboard") == ["surf", "##board"] and clip.tokenize("surfboard") == ["surf", "board</w>"]
    board, alone = ["a surfboard"], ["they surf"]
    assert becomes(make(bert, clip, board * 2 + alone), bert, clip, "surf") == ("surf", "learned")
    assert becomes(make(bert, clip, board + alone * 2), bert, clip, "surf") == ("surf</w>", "rule")


def test_half_of_the_occurrences_is_no_majority(bert, clip):
    assert becomes(make(bert, clip, ["a giraffe", "gi joe"]), bert, clip, "gi") == ("gi</w>", "rule")
    assert becomes(make(bert, clip, ["a giraffe", "a giraffe", "gi joe"]), bert, clip, "gi")[1] == "learned"


def test_a_word_that_is_always_cut_becomes_the_piece_that_is_its_own(learned, bert, clip):
    assert becomes(learned, bert, clip, "computer") == ("compu", "learned")
    # Here most of `compu` belongs to the plural, and each keeps a piece of its own.
    plural = make(bert, clip, ["computers", "computers", "computer"])
    assert becomes(plural, bert, clip, "computers") == ("compu", "learned")
    assert becomes(plural, bert, clip, "computer") == ("ter</w>", "learned")


def test_an_inflected_word_that_is_always_cut_becomes_its_stem(bpe, clip):
    assert clip.tokenize("zebras skating") == ["ze", "bras</w>", "sk", "ating</w>"]
    made = make(bpe, clip, ["two zebras skating"])
    found = [becomes(made, bpe, clip, token) for token in ("Ġzebras", "Ġskating")]
    assert found == [("zebra</w>", "learned"), ("skate</w>", "learned")]


def test_the_byte_level_space_is_no_part_of_a_word(bpe, clip):
    assert bpe.tokenize(" cyan") == ["Ġcyan"] and clip.tokenize("cyan") == ["cy", "an</w>"]
    votes = vocabulary.count(bpe, clip, ["a dog"])
    pair = bpe.get_vocab()["Ġdog"], clip.get_vocab()["dog</w>"]
    assert votes.equal[pair] == votes.within[pair] == votes.parts[pair] == 1
    assert becomes(make(bpe, clip, ["a cyan dog"]), bpe, clip, "Ġcyan") == ("cy", "learned")


def test_the_map_depends_on_the_captions_and_not_on_their_order(learned, ruled, bert, clip, monkeypatch):
    monkeypatch.setattr(vocabulary, "TEXTS", 2)
    votes = vocabulary.count(bert, clip, CAPTIONS[::-1])
    again = make(bert, clip, votes)
    assert torch.equal(learned.index, again.index) and learned.how == again.how
    assert learned.fingerprint() == again.fingerprint() != ruled.fingerprint()


def test_tokens_that_cross_are_in_neither(bert):
    def spans(*places):
        starts, ends = np.array(places).T
        return vocabulary.Spans(np.arange(len(places)), starts, ends, np.array([len(places)]))

    ours, theirs = spans((1, 4), (4, 6)), spans((1, 3), (3, 6))
    assert vocabulary.containing(ours, theirs).tolist() == [-1, 1]
    assert vocabulary.containing(theirs, ours).tolist() == [0, -1]
    votes = vocabulary.align(ours, theirs)
    assert (votes.within, votes.parts, votes.equal) == (Counter({(1, 1): 1}), Counter({(0, 0): 1}), Counter())


# --- nearest by meaning -----------------------------------------------------------------------------------
def test_the_nearest_word_by_meaning(bert, clip):
    found = vocabulary.nearest({1: "dog", 2: "qwxzzy", 3: "limousine"}, clip)
    assert clip.convert_ids_to_tokens([found[1], found[3]]) == ["dog</w>", "limo</w>"]
    assert 2 not in found
    assert becomes(make(bert, clip, by_meaning=True), bert, clip, "limousine") == ("limo</w>", "nearest")
    # A word that was looked for before is found as it was.
    assert vocabulary.nearest({7: "limousine"}, clip) == {7: found[3]}


# --- use --------------------------------------------------------------------------------------------------
def test_models_of_other_vocabularies_are_refused(ruled, bert, bpe, clip):
    ruled.check(bert, clip, 30_524)
    for pair, rows, role in (
        ((bpe, clip), 30_524, "captioner"),
        ((bert, bert), 30_524, "generator"),
        ((bert, clip), 1000, "captioner"),
    ):
        with pytest.raises(ValueError, match=f"The {role} has another vocabulary than the map was made for"):
            ruled.check(*pair, rows)


def test_what_cannot_be_mapped_is_refused(bert, clip):
    with pytest.raises(ValueError, match="vocab_size is 100 and the captioner's tokenizer has 30,524"):
        make(bert, clip, vocab_size=100)
    with pytest.raises(ValueError, match="has no token ',</w>'"):
        make(clip, bert)


# --- the census -------------------------------------------------------------------------------------------
def test_the_same_set_is_not_the_same_list():
    cuts = Cuts(np.array([1, 2, 1, 3, 2]), np.array([3, 0, 2])), Cuts(np.array([1, 2, 3, 1]), np.array([2, 0, 2]))
    assert census.equal(*cuts).tolist() == [False, True, False]
    assert census.equal_sets(*cuts).tolist() == [True, True, False]


def test_a_census_answers_once(tmp_path, learned, bert, clip, monkeypatch):
    monkeypatch.setattr(census, "BLOCK", 3)
    chosen, size = np.arange(len(bert)) % 2 == 0, len(bert)

    def answers(store):
        counted = Census(store, bert, clip, CAPTIONS)
        bits = [counted.same_list(), counted.same_set(), counted.mapped_own(learned.index)]
        sums = [counted.voted(kind) for kind in ("equal", "within")]
        return [*bits, counted.tokens_where(chosen), counted.counts(), counted.times(size), sums]

    rows = [bert(text, add_special_tokens=False).input_ids for text in CAPTIONS]
    votes = Census(RunStore(tmp_path), bert, clip, CAPTIONS).votes
    assert votes == vocabulary.count(bert, clip, CAPTIONS)
    found = answers(RunStore(tmp_path))
    assert found[0].tolist() == found[1].tolist() == found[2].tolist() == [False, False, False, True]
    assert found[3].tolist() == [sum(token % 2 == 0 for token in row) for row in rows]
    assert found[4].tolist() == [len(row) for row in rows]
    assert np.array_equal(found[5], np.bincount(sum(rows, []), minlength=size))
    assert found[6] == [sum(votes.equal.values()), sum(votes.within.values())]
    monkeypatch.setattr(census, "_cut", lambda *_: pytest.fail("captions were cut"))
    for again, before in zip(answers(RunStore(tmp_path)), found, strict=True):
        np.testing.assert_array_equal(again, before)


def test_a_share_has_the_interval_of_its_images():
    rng = np.random.default_rng(0)
    images = np.repeat(np.arange(300), 5)
    same = (rng.random(300)[images] + rng.random(1500)) / 2 > 0.4  # captions of an image go together
    found = census.share(same, np.ones(1500), images)
    assert found.n == 1500 and found.value == pytest.approx(100 * same.mean())
    low, high = bootstrap_interval(100 * same.reshape(300, 5).mean(axis=1))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.4)
    alone = census.share(same, np.ones(1500), np.arange(1500))
    assert found.high - found.low > 1.2 * (alone.high - alone.low)


# --- drawings of token ids --------------------------------------------------------------------------------
def test_own_tokens_draw_what_the_caption_draws(tmp_path, clip):
    models = profile.load("mini", num_inference_steps=2)
    shop = Workshop(models, RunStore(tmp_path), progress=False)
    texts, seeds = ["a red dog", "a blue cup next to a cat"], [5, 6]
    rows = clip(texts, add_special_tokens=False).input_ids
    retold = token_drawings.Retold(shop, [], {"own": rows, "other": [rows[0], [320]]}, seeds)
    images = retold.draw()
    assert images.shape == (3, 64, 64, 3) and images.dtype == np.uint8  # what both ways tell is drawn once
    assert np.array_equal(images[:2], shop.generator.draw(texts, seeds))
    assert np.array_equal(retold.show("other", 2), images[[0, 2]])
    again = Workshop(models, RunStore(tmp_path), progress=False)
    assert np.array_equal(
        token_drawings.Retold(again, [], {"own": rows, "other": [rows[0], [320]]}, seeds).draw(), images
    )
    assert "generator" not in again._loaded  # nothing was loaded


def test_prompts_that_cannot_be_drawn(clip):
    with pytest.raises(ValueError, match="A prompt has 31 tokens, and the generator reads 32"):
        token_drawings.prompt_ids(clip, [[1], [2] * 31])
    assert token_drawings.prompt_ids(clip, [[1, 2], []])[:, :4].tolist() == [
        [49_406, 1, 2, 49_407],
        [49_406, 49_407, 49_407, 49_407],
    ]
