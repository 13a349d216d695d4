"""Tokenizers and processors that are read once."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from dfl_utils.models import captioner, checkpoint, generator
from dfl_utils.world import profile


@pytest.fixture
def mini(monkeypatch):
    monkeypatch.setattr(checkpoint, "_known", {})  # nothing of other tests, and nothing left to them
    return profile.load("mini").pair(captioner="blip-base")


def test_a_copy_of_a_folder_shares_its_tokenizer_and_another_does_not(mini, tmp_path):
    folder = Path(mini.locate(mini.captioner))
    copy = shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("*.safetensors"))
    first = checkpoint.load_tokenizer(str(folder))
    assert checkpoint.load_tokenizer(str(copy)) is first
    settings = json.loads((copy / "tokenizer_config.json").read_text(encoding="utf-8"))
    (copy / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 7}), encoding="utf-8")
    other = checkpoint.load_tokenizer(str(copy))
    assert other is not first and other.model_max_length == 7


def test_a_file_in_a_subfolder_decides_too(tmp_path):
    """As the second tokenizer of an InstructBLIP, which has a folder of its own."""
    (tmp_path / "model/qformer_tokenizer").mkdir(parents=True)
    part = tmp_path / "model/qformer_tokenizer/tokenizer.json"
    made = []
    for text in ("{}", "{}", '{"a": 1}'):
        part.write_text(text)
        made.append(checkpoint.shared("one of two", tmp_path / "model", object))
    assert made[0] is made[1] and made[1] is not made[2]


def test_a_tokenizer_is_what_transformers_reads(mini):
    for folder in (mini.locate(mini.captioner), mini.locate(mini.clip)):
        shared, own = checkpoint.load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
        assert type(shared) is type(own) and shared.get_vocab() == own.get_vocab()
        assert shared("A red dog").input_ids == own("A red dog").input_ids


def test_models_of_one_vocabulary_share_it(mini):
    drawn, trained = generator.Generator.load(mini).pipeline, generator.load_pipeline(mini)
    assert drawn.tokenizer is trained.tokenizer
    assert captioner.load(mini).processor is captioner.load(mini).processor is captioner.processor(mini)
