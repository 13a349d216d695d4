"""Scores of given pairs and of result files: against the parts that they are made of, and with bad input."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

import dfl_utils
from dfl_utils.game.loops import Game
from dfl_utils.game.rerank import on_disk
from dfl_utils.game.scorer import Scorer
from dfl_utils.scores import ngrams
from dfl_utils.scores.scene_graphs import spice_like
from dfl_utils.scores.word_mover import word_mover
from dfl_utils.store.store import RunStore
from dfl_utils.world import data
from dfl_utils.world.profile import MINI

TEXTS = ["a red dog", "a blue cup", "a small yellow star"]
RESULTS = [{"image_id": 7, "caption": "A red dog on a mat."}, {"image_id": 3, "caption": "two cats near a cup"}]
AMUSED = f"mini, generator={MINI / 'amused'}"
REFERENCES = {7: ["a red dog lies on a mat", "the dog"], 3: ["two cats and a cup", "cats"], 9: ["a star"]}
ANNOTATIONS = {"annotations": [{"image_id": k, "caption": text} for k, texts in REFERENCES.items() for text in texts]}


@pytest.fixture(scope="module")
def paths(mini):
    return [example.path for example in data.load(mini, "nocaps", "overall")[:3]]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return RunStore(tmp_path_factory.mktemp("store"))


def test_pairs_lists_and_the_matrix_hold_the_same_scores(mini, paths, store):
    options = {"profile": replace(mini, clip_score_prefix="A photo depicts "), "store": store}
    metrics = ["CLIPScore", "likelihood"]
    matrix = dfl_utils.score_captions(paths, TEXTS, metrics, matrix=True, **options)
    pairs = dfl_utils.score_captions(paths, TEXTS, metrics, **options)
    lists = dfl_utils.score_captions(paths[:2], [TEXTS[:1], TEXTS[1:]], metrics, **options)
    game, examples = Game(options["profile"], store, progress=False), [on_disk(path, store) for path in paths]
    vectors = game.encoder("clip").embed([data.read_image(path) for path in paths])
    scorer = Scorer(options["profile"], store, [data.Example(0, "", ("a dog",))])
    cosines = vectors @ scorer._clip_text([f"A photo depicts {text}" for text in TEXTS]).T
    np.testing.assert_allclose(matrix["CLIPScore"], 2.5 * np.maximum(cosines, 0), atol=1e-5)
    np.testing.assert_allclose(matrix["likelihood"], game.log_likelihood(examples, [TEXTS] * 3), atol=1e-5)
    for name, values in matrix.items():
        assert values.shape == (3, 3)
        np.testing.assert_allclose(pairs[name], values.diagonal(), atol=1e-5)
        np.testing.assert_allclose(np.concatenate(lists[name]), [values[0, 0], *values[1, 1:]], atol=1e-5)


def test_captions_that_a_model_sees_in_part_are_said_once(mini, paths, store, caplog):
    long, prefixed = "a red dog " * 20, replace(mini, clip_score_prefix="A photo depicts ")
    options = {"profile": prefixed, "store": store}
    dfl_utils.score_captions(paths[:1] * 2, [long, "a cup"], ["CLIPScore", "likelihood"], **options)
    said = "reads only the first %d tokens of %s, such as %r"
    assert caplog.messages == [
        f"the text encoder of clip {said}" % (32, "1 longer texts", f"A photo depicts {long}"),
        f"the captioner {said}" % (44, "longer captions", long),
    ]


def test_scores_that_need_no_model_need_no_gpu(store, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    found = dfl_utils.evaluate_captions(RESULTS, ANNOTATIONS, ["ROUGE-L"], profile="paper", store=store)
    assert found == dfl_utils.evaluate_captions(RESULTS, ANNOTATIONS, ["ROUGE-L"], store=store)
    with pytest.raises(ValueError, match="Profile 'paper' wants the device 'cuda', which is not here"):
        dfl_utils.score_captions(["a.png"], ["a"], profile="paper", store=store)


@pytest.mark.parametrize(
    ("captions", "options", "message"),
    [
        (["a dog"], {}, "captions has 1 entries for 2 images: give one for each, or matrix=True"),
        ([["a dog"], []], {}, r"captions\[1\] is empty"),
        (["a dog", " "], {}, r"captions\[1\] is blank"),
        (["a dog", "a cat"], {"metrics": ["fluency"]}, "some of CLIPScore, likelihood, denoising"),
        (["a dog", "a cat"], {"metrics": ["denoising"], "profile": AMUSED}, "is a AmusedPipeline, which cannot be"),
    ],
)
def test_bad_pairs_are_refused(mini, paths, store, captions, options, message):
    with pytest.raises(ValueError, match=message):
        dfl_utils.score_captions(paths[:2], captions, **{"profile": mini, "store": store} | options)


def test_a_result_file_has_the_scores_of_its_parts(mini, store, tmp_path, monkeypatch):
    monkeypatch.setattr(ngrams, "meteor", lambda captions, references: (30.0, np.array([20.0, 50.0])))
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    (tmp_path / "annotations.json").write_text(json.dumps(ANNOTATIONS))
    files = [tmp_path / "results.json", tmp_path / "annotations.json"]
    found = dfl_utils.evaluate_captions(*files, profile=mini, store=store)
    captions, references = [[row["caption"]] for row in RESULTS], [REFERENCES[7], REFERENCES[3]]
    cider = ngrams.Cider(references)
    bleu = ngrams.corpus_bleu(ngrams.bleu_statistics(captions, references).sum(axis=(0, 1)))
    expected = {
        "CIDEr-D": cider.score(captions).mean(),
        "CIDEr": cider.score(captions, plain=True).mean(),
        **{f"BLEU-{n}": value for n, value in enumerate(bleu, 1)},
        "ROUGE-L": ngrams.rouge_l(captions, references).mean(),
        "METEOR": 30.0,
        "METEOR, mean": 35.0,
        "WMD": word_mover(captions, references).mean(),
        "SPICE-like": spice_like(captions, references).mean(),
    }
    assert list(found) == list(expected)
    np.testing.assert_allclose(list(found.values()), list(expected.values()))


@pytest.mark.parametrize(
    ("results", "message"),
    [
        (RESULTS[:1] * 2, "results has image_id 7 twice: keep one caption"),
        ([{"image_id": 5, "caption": "a"}], "results has image_id 5, which has no caption in annotations"),
        ([{"image_id": 7, "caption": " "}], "image_id 7 with an empty caption: write one, or leave"),
        ([{"image_id": 7, "caption": "a \ud83d"}], "results has half a character, which no text of UTF-8 has"),
        ([{"image": 7}], "results is not in COCO's result format"),
        ([{"image_id": 7.5, "caption": "a"}], "results is not in COCO's result format"),
    ],
)
def test_bad_results_are_refused(mini, store, results, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        dfl_utils.evaluate_captions(results, ANNOTATIONS, profile=mini, store=store)


def test_what_is_no_file_and_what_is_no_annotation_is_named(mini, store, tmp_path):
    with pytest.raises(FileNotFoundError, match="none.json is missing"):
        dfl_utils.evaluate_captions(tmp_path / "none.json", ANNOTATIONS, profile=mini, store=store)
    gone = replace(mini, word_vectors=tmp_path / "none.gz")
    with pytest.raises(FileNotFoundError, match="none.gz is missing"):
        dfl_utils.evaluate_captions(RESULTS, ANNOTATIONS, ["BLEU-4", "WMD"], profile=gone, store=store)
    with pytest.raises(ValueError, match="annotations is not in COCO's caption format"):
        dfl_utils.evaluate_captions(RESULTS, RESULTS, profile=mini, store=store)
    with pytest.raises(ValueError, match="some of CIDEr-D, CIDEr, BLEU-1"):
        dfl_utils.evaluate_captions(RESULTS, ANNOTATIONS, ["BLEU"], profile=mini, store=store)
    half = {"annotations": [{"image_id": 7, "caption": "a \ud83d"}]}
    with pytest.raises(ValueError, match="annotations has half a character, .* in a caption of image_id 7: write"):
        dfl_utils.evaluate_captions(RESULTS[:1], half, profile=mini, store=store)
