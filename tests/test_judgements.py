"""People's judgements of captions: small files in the published forms, and what is computed of them by hand."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.io import savemat
from scipy.stats import kendalltau

import dfl_utils
from dfl_utils.build import cli
from dfl_utils.game import people
from dfl_utils.world import data, judgements
from dfl_utils.world.judgements import Preferred, Rated


@pytest.fixture
def place(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("1_a.jpg", "2_b.jpg", "2008_000008.jpg", "COCO_val2014_000000000042.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / name)
    return tmp_path


def fields(found):
    return [(one.image.name, *list(vars(one).values())[1:]) for one in found]


def flickr(place):
    captions = ["1_a.jpg#0\tA dog runs .", "1_a.jpg#1\tA brown dog .", "2_b.jpg#0\tTwo men ."]
    (place / "Flickr8k.token.txt").write_text("\n".join(captions), encoding="utf-8")


def test_flickr8k_has_a_line_a_pair_and_its_own_captions_are_left_out(place):
    flickr(place)
    (place / "ExpertAnnotations.txt").write_text(
        "1_a.jpg\t2_b.jpg#0\t1\t1\t2\n2_b.jpg\t1_a.jpg#1\t1\t3\t1\n1_a.jpg\t1_a.jpg#0\t4\t4\t4\n"
    )
    (place / "CrowdFlowerAnnotations.txt").write_text("1_a.jpg\t2_b.jpg#0\t0.25\t1\t3\n")
    found = judgements.read(place)
    assert fields(found["Flickr8k-Expert"]) == [
        *[("1_a.jpg", "Two men .", rating) for rating in (1.0, 1.0, 2.0)],
        *[("2_b.jpg", "A brown dog .", rating) for rating in (1.0, 3.0, 1.0)],
    ]
    assert fields(found["Flickr8k-CF"]) == [("1_a.jpg", "Two men .", 0.25)]


def test_composite_has_as_many_ratings_as_captions_in_one_column(place):
    rows = [
        "HIT,Worker,Time,Answer",
        '1,2,3,"http://host/path/1_a.jpg;a dog;a cat;two dogs;5;1;3"',
        '1,2,3,"http://host/path/2_b.jpg;men;a man;women;a dog;4;3;2;1"',
        "made in 2015",
    ]
    (place / "8k_correctness.csv").write_text("\n".join(rows), encoding="utf-8")
    found = judgements.read(place)["Composite"]
    assert fields(found)[:3] == [("1_a.jpg", "a dog", 5.0), ("1_a.jpg", "a cat", 1.0), ("1_a.jpg", "two dogs", 3.0)]
    assert fields(found)[3:] == [
        ("2_b.jpg", text, r) for text, r in zip(("men", "a man", "women", "a dog"), (4, 3, 2, 1), strict=True)
    ]


def cells(*values):
    row = np.empty((1, len(values)), dtype=object)
    row[0] = values
    return row


def pascal(place, balances):
    kinds = np.dtype([("image", object), ("one", object), ("other", object)])
    pairs = np.array([[("2008_000008.jpg", f"first {k}", f"second {k}") for k in range(len(balances))]], dtype=kinds)
    savemat(place / "pair_pascal.mat", {"new_input": pairs, "category": np.array([[1, 3, 4][: len(balances)]])})
    triplet = np.dtype([("reference", object), ("one", object), ("other", object), ("winner", object)])
    won = [1 if vote < (48 + balance) // 2 else -1 for balance in balances for vote in range(48)]
    votes = np.array([[("r", "a", "b", np.array([[one]])) for one in won]], dtype=triplet)
    savemat(place / "consensus_pascal.mat", {"triplets": votes})


def test_pascal_50s_takes_the_majority_of_48_votes(place):
    pascal(place, [10, 0, -48])
    assert fields(judgements.read(place)["Pascal-50S"]) == [
        ("2008_000008.jpg", "first 0", "second 0", "HC"),
        ("2008_000008.jpg", "second 2", "first 2", "MM"),
    ]


def foil_pair(place):
    right = {"image_id": 42, "id": 7, "foil": False, "foil_word": "ORIG", "target_word": "ORIG", "caption": "a dog"}
    foil = right | {"foil": True, "foil_word": "cat", "target_word": "dog", "caption": "a cat", "foil_id": 1}
    (place / "foilv1.0_test_2017.json").write_text(json.dumps({"annotations": [right, foil]}))


def test_foil_pairs_a_caption_with_its_exchanged_word(place):
    foil_pair(place)
    (only,) = judgements.read(place)["FOIL"]
    assert (only.image.name, only.better, only.worse) == ("COCO_val2014_000000000042.jpg", "a dog", "a cat")


def test_what_is_missing_or_broken_is_named(place):
    with pytest.raises(FileNotFoundError, match="holds no people's judgements: it needs one of ExpertAnnotations.txt"):
        judgements.read(place)
    expert = place / "ExpertAnnotations.txt"
    expert.write_text("1_a.jpg\t2_b.jpg#0\t1\t1\t2\n")
    with pytest.raises(FileNotFoundError, match="Flickr8k.token.txt is missing"):
        judgements.read(place)
    flickr(place)
    expert.write_text("1_a.jpg\t2_b.jpg#0\t1\t1\n")
    with pytest.raises(ValueError, match="ExpertAnnotations.txt is not of its published form .*fetch it again"):
        judgements.read(place)
    expert.write_text("1_a.jpg\t9_z.jpg#0\t1\t1\t2\n")
    with pytest.raises(ValueError, match="not of its published form .*9_z.jpg#0"):
        judgements.read(place)
    expert.write_text("3_c.jpg\t2_b.jpg#0\t1\t1\t2\n")
    with pytest.raises(FileNotFoundError, match="has no image 3_c, which its annotations name"):
        judgements.read(place)


def test_agreement_is_kendalls_tau_and_a_tie_is_half_a_hit(place):
    image = place / "images" / "1_a.jpg"
    rated = [Rated(image, "", rating) for rating in (1, 2, 2, 3)]
    # Six pairs of captions, one of equal ratings; of the others four in order and one not.
    scores = [0.1, 0.4, 0.2, 0.3]
    assert judgements.agreement("Flickr8k-CF", scores, rated) == pytest.approx(3 / np.sqrt(6 * 5))
    assert judgements.agreement("Flickr8k-Expert", scores, rated) == pytest.approx(2 * 3 * 3 / (4**2 * 2))
    assert Preferred(image, "a", "b").kind == ""
    np.testing.assert_array_equal(judgements.accuracy([1, 2, 3], [0, 2, 4]), [1, 0.5, 0])


def test_judges_beside_people(place, mini, tmp_path):
    """The mini pair on its own world: the right caption of a scene against another scene's, and four ratings each."""
    examples = data.load(mini, "coco", "val")[:4]
    texts = [example.references[0] for example in examples]
    pairs = [Preferred(e.path, texts[k], texts[k - 1], "another") for k, e in enumerate(examples)]
    rated = [
        Rated(e.path, text, 4.0 if j == k else 1.0) for k, e in enumerate(examples) for j, text in enumerate(texts)
    ]
    judges = ("CLIPScore", "denoising")
    table = people.beside({"FOIL": pairs, "Composite": rated}, judges, models=mini, store=tmp_path / "store")
    assert table.n.tolist() == [4, 4, 16, 16] and table.judge.tolist() == [*judges, *judges]
    assert table.kind.tolist() == ["another", "another", "", ""]
    scores = dfl_utils.score_captions([e.path for e in examples], texts, judges, matrix=True, profile=mini)
    for judge, accuracy, tau in zip(judges, table.agreement[:2], table.agreement[2:], strict=True):
        hits = [scores[judge][k, k] > scores[judge][k, k - 1] for k in range(4)]
        assert accuracy.value == 100 * np.mean(hits)
        assert tau.value == pytest.approx(
            100 * kendalltau(scores[judge].ravel(), np.eye(4).ravel(), variant="c").statistic
        )
        assert accuracy.n == tau.n == 4 and tau.low <= tau.value <= tau.high


def test_the_command_writes_a_line_a_judge(place, mini, tmp_path, monkeypatch, capsys):
    foil_pair(place)
    monkeypatch.setenv("DFL_STORE", str(tmp_path / "store"))
    command = ["people", str(place), "--profile", "mini", "--judges", "CLIPScore", "-o"]
    assert cli.main([*command, str(tmp_path / "people.csv")]) in (0, None)
    (line,) = pd.read_csv(tmp_path / "people.csv").to_dict("records")
    assert (line["collection"], line["judge"], line["n"]) == ("FOIL", "CLIPScore", 1) and line["value"] in (0, 50, 100)
    assert cli.main([*command, str(tmp_path)]) == 2 and "cannot be written" in capsys.readouterr().err
