"""Pix2Struct in the captioner's place: it reads patches of any number, and its decoder continues the prompt."""

import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers.models.pix2struct.image_processing_pil_pix2struct import Pix2StructImageProcessorPil

from dfl_utils.models import captioner as captioners
from dfl_utils.world import profile

WORDS = ["[PAD]", "</s>", "[UNK]", "a", "picture", "of", "red", "dog", "cup"]
PROMPT = "a picture of"
IMAGES = [Image.linear_gradient("L").resize(size).convert("RGB") for size in ((64, 48), (30, 90))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    base = Tokenizer(WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="[UNK]"))
    base.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    base.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])  # as T5's
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "</s>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=base, **named)
    both = {"hidden_size": 32, "d_kv": 8, "d_ff": 32}
    text = both | {"vocab_size": len(WORDS), "num_layers": 1, "num_heads": 4, "decoder_start_token_id": 0}
    image = both | {"patch_embed_hidden_size": 768, "num_hidden_layers": 1, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = transformers.Pix2StructConfig(text_config=text, vision_config=image, initializer_factor=8.0)
    made = tmp_path_factory.mktemp("pix2struct")
    transformers.Pix2StructForConditionalGeneration(config).save_pretrained(made)
    patches = Pix2StructImageProcessorPil(patch_size={"height": 16, "width": 16}, max_patches=32)
    transformers.Pix2StructProcessor(patches, tokenizer).save_pretrained(made)
    return made


def load(folder, prompt):
    fields = {"captioner_prompt": prompt, "min_words": 2, "max_words": 6}
    return captioners.load(profile.load("mini", captioner=str(folder), **fields))


@pytest.mark.parametrize("prompt", [PROMPT, ""])
def test_it_continues_the_prompt_as_the_library_does_and_leaves_it_out(folder, prompt):
    captioner = load(folder, prompt)
    ids = [WORDS.index(word) for word in prompt.split()]
    begun = {"decoder_input_ids": torch.tensor([[0, *ids]])} if ids else {}
    theirs = []
    for image in IMAGES:
        patches = captioner.processor(images=image, return_tensors="pt")
        options = {"num_beams": 2, "do_sample": False, "min_new_tokens": 2, "max_new_tokens": 6}
        row = captioner.model.generate(**patches, **begun, **options)[:, 1 + len(ids) :]
        theirs += captioner.processor.tokenizer.batch_decode(row, skip_special_tokens=True)
    assert captioner.describe(IMAGES, num_beams=2) == theirs
    assert [len(row) for row in captioner.sample(IMAGES, [[[k, 0], [k, 1]] for k in range(2)])] == [2, 2]
