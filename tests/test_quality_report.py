"""How the embedded models' quality is counted, by hand; and that a rebuild refuses mixed foundations."""

import json

import pytest
import torch
from safetensors.torch import save_file

from dfl_utils.mini import pretrain
from dfl_utils.mini import quality_report as report
from dfl_utils.world import scenes, splits


def item(*things):
    scene = scenes.Scene(
        tuple(scenes.Thing(n, c, "small", 4 * k, 0) for k, (n, c) in enumerate(things)), "white", "beside"
    )
    return splits.Item(0, "seed", splits.SPLITS[0], scene, ("a",))


def test_named_by_hand():
    assert report.named("a small red puppy left of an airplane, blue t-shirt") == [
        ("dog", "red"),
        ("plane", None),
        ("shirt", "blue"),
    ]
    assert report.named("nothing of the kind") == []


def test_naming_by_hand():
    truth = [item(("dog", "red"), ("plane", "blue")), item(("cat", "black"))]
    scores = report.naming(["a red puppy and a green plane", "a black dog"], truth)
    assert scores == {"precision": 2 / 3, "recall": 2 / 3, "colour": 1 / 2}


def test_prompts_ask_for_every_category_equally():
    texts, nouns, colours = report.prompts(96, 2, "test")
    assert all(noun in text and colour in text for text, pair, paint in zip(texts, nouns, colours, strict=True)
               for noun, colour in zip(pair, paint, strict=True))  # fmt: skip
    assert [sum(pair[0] == name for pair in nouns) for name in scenes.CATEGORIES] == [2] * 48
    assert all(len(set(pair)) == len(set(paint)) == 2 for pair, paint in zip(nouns, colours, strict=True))


def test_a_stage_refuses_new_foundations(tmp_path):
    for name in ("autoencoder", "clip"):
        (tmp_path / name / "final").mkdir(parents=True)
        save_file({"w": torch.zeros(1)}, tmp_path / name / "final" / "model.safetensors")
    pretrain.check_upstream("unet", tmp_path)
    pretrain.check_upstream("unet", tmp_path)  # unchanged: goes on
    note = tmp_path / "unet" / "upstream.json"
    note.write_text(json.dumps(json.loads(note.read_text()) | {"clip": "another"}))
    with pytest.raises(ValueError, match="autoencoder or clip changed since unet began: delete"):
        pretrain.check_upstream("unet", tmp_path)
