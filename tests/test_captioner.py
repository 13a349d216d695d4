"""The captioners: the shipped BLIP, and a tiny random BLIP-2 with a byte-level tokenizer such as OPT's."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor, GPT2Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from dfl_utils.models import captioner as captioners
from dfl_utils.models.captioner import Blip2Captioner, BlipCaptioner, Captioner
from dfl_utils.world import profile, scenes, splits

QUERIES = 4
VOCABULARY = 112  # 106 tokens and six rows of padding; the published table has some, too
MERGES = [("Ġ", "a"), ("d", "o"), ("do", "g"), ("Ġ", "do"), ("Ġ", "dog")]


def byte_tokenizer():
    """Starts with </s>, ends with nothing; a token carries the space before it."""
    letters = [mark for byte, mark in bytes_to_unicode().items() if byte in {10, *range(32, 127)}]
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *letters, *("".join(pair) for pair in MERGES)]
    special = dict(bos_token="</s>", eos_token="</s>", unk_token="</s>", pad_token="<pad>", add_bos_token=True)
    return GPT2Tokenizer(vocab={token: k for k, token in enumerate(tokens)}, merges=MERGES, **special)


def tiny_blip2(folder):
    tokenizer = byte_tokenizer()
    size = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    config = Blip2Config(
        vision_config=dict(**size, intermediate_size=64, image_size=32, patch_size=8, initializer_range=0.02),
        qformer_config=dict(
            **size, vocab_size=50, intermediate_size=64, encoder_hidden_size=32, cross_attention_frequency=2
        ),
        text_config=dict(
            **size,
            model_type="opt",
            vocab_size=VOCABULARY,
            ffn_dim=64,
            max_position_embeddings=64,
            word_embed_proj_dim=32,
            bos_token_id=2,
            eos_token_id=tokenizer.convert_tokens_to_ids("Ċ"),  # the published captions end with a new line
            pad_token_id=1,
        ),
        num_query_tokens=QUERIES,
        image_token_index=len(tokenizer),
    )
    torch.manual_seed(0)
    model = Blip2ForConditionalGeneration(config)
    with torch.no_grad():
        model.query_tokens.normal_()  # they begin as zeros
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "embed" not in name:
                weight.mul_(8)  # else every image has the same caption
    model.save_pretrained(folder)
    image_processor = BlipImageProcessorPil(size={"height": 32, "width": 32})
    Blip2Processor(image_processor, tokenizer, num_query_tokens=QUERIES).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def images():
    return [Image.fromarray(scenes.render(item.scene)) for item in list(splits.items("coco", "test"))[:3]]


@pytest.fixture(scope="module")
def blip():
    return captioners.load(profile.load("mini"))


@pytest.fixture(scope="module")
def blip2_folder(tmp_path_factory):
    return tiny_blip2(tmp_path_factory.mktemp("blip2"))


@pytest.fixture(scope="module")
def blip2(blip2_folder):
    return captioners.load(profile.load("mini", captioner=str(blip2_folder), max_words=12))


@pytest.fixture(params=["blip", "blip2"])
def captioner(request):
    return request.getfixturevalue(request.param)


def streams(images, candidates=3):
    return [[(0, image, n) for n in range(candidates)] for image in range(len(images))]


def test_the_checkpoint_chooses_the_class(blip, blip2, blip2_folder):
    assert type(blip) is BlipCaptioner and type(blip2) is Blip2Captioner
    assert type(Captioner.load(profile.load("mini", captioner=str(blip2_folder)))) is Blip2Captioner


def test_a_caption_does_not_depend_on_its_batch(captioner, images):
    together = captioner.sample(images, streams(images))
    alone = [captioner.sample([image], [seeds])[0] for image, seeds in zip(images, streams(images), strict=True)]
    swapped = captioner.sample(images[::-1], streams(images)[::-1])[::-1]
    assert together == alone == swapped
    assert len({text for row in together for text in row}) > 3


def test_captions_keep_to_the_word_limits_and_drop_the_prompt(captioner, images):
    rows = captioner.sample(images[:2], streams(images[:2], 8), temperature=3.0, top_p=1.0)
    for text in (text for row in rows for text in row):
        assert not text.startswith("a picture of") and not any(mark in text for mark in ("[SEP]", "[DEC]", "<pad>"))
        assert len(text.split()) <= captioner.max_words


@pytest.mark.parametrize("num_beams", [1, 3])
def test_beam_search_equals_the_librarys(captioner, images, num_beams):
    inputs = captioner.processor(images=images, text=["a picture of"] * len(images), return_tensors="pt")
    options = dict(min_new_tokens=captioner.min_words, max_new_tokens=captioner.max_words, do_sample=False)
    if captioner.model.config.model_type == "blip-2":
        options |= dict(eos_token_id=captioner.end_token_id, pad_token_id=1)
    ids = captioner.model.generate(**inputs, num_beams=num_beams, **options)
    theirs = [
        text.removeprefix("a picture of").strip()
        for text in captioner.processor.batch_decode(ids, skip_special_tokens=True)
    ]
    assert captioner.describe(images, num_beams=num_beams) == theirs
    assert len(set(theirs)) > 1


def test_an_empty_prompt_is_the_librarys_default(blip2, images):
    free = Blip2Captioner(blip2.model, blip2.processor, "", 1, 10)
    pixels = free.processor.image_processor(images, return_tensors="pt").pixel_values
    tokens = dict(eos_token_id=free.end_token_id, pad_token_id=1, min_new_tokens=1, max_new_tokens=10)
    ids = free.model.generate(pixels, num_beams=3, do_sample=False, **tokens)
    theirs = free.processor.batch_decode(ids, skip_special_tokens=True)
    assert free.describe(images) == [text.strip() for text in theirs]


# --- likelihood --------------------------------------------------------------------------------------------
def slow_log_likelihood(captioner, image, caption):
    """Token by token through the library's own forward pass, each time anew."""
    model, processor = captioner.model, captioner.processor
    inputs = processor(images=[image], text=[f"a picture of {caption}".strip()], return_tensors="pt")
    given = processor(images=[image], text=["a picture of"], return_tensors="pt").input_ids.shape[1]
    ids = inputs.input_ids
    if model.config.model_type == "blip":
        ids[:, 0] = model.config.text_config.bos_token_id
        given -= 1  # its tokenizer has written the end token, also behind the prompt
    else:
        ids = torch.cat([ids, torch.tensor([[captioner.end_token_id]])], 1)
    total = 0.0
    for k in range(given, ids.shape[1]):
        with torch.no_grad():
            logits = model(pixel_values=inputs.pixel_values, input_ids=ids[:, :k]).logits
        total += logits[0, -1].log_softmax(-1)[ids[0, k]].item()
    return total / (ids.shape[1] - given)


CAPTIONS = [["a red dog", "", "two big blue cups"], ["dog", "a dog on a green hill", " a cat "], ["x", "do", "a do"]]


def test_likelihood_equals_the_slow_one(captioner, images):
    ours = captioner.log_likelihood(images, CAPTIONS)
    theirs = [
        [slow_log_likelihood(captioner, image, caption.strip()) for caption in row]
        for image, row in zip(images, CAPTIONS, strict=True)
    ]
    assert ours.shape == (3, 3) and ours.dtype == np.float32 and (ours < 0).all()
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_likelihood_does_not_depend_on_its_batch(captioner, images, monkeypatch):
    together = captioner.log_likelihood(images, CAPTIONS)
    alone = [captioner.log_likelihood([image], [row])[0] for image, row in zip(images, CAPTIONS, strict=True)]
    np.testing.assert_allclose(together, alone, atol=1e-4)
    monkeypatch.setattr(captioners, "LIKELIHOOD_BATCH", 2)
    np.testing.assert_allclose(together, captioner.log_likelihood(images, CAPTIONS), atol=1e-4)


def test_a_caption_longer_than_the_models_positions_is_read_in_part(captioner, images):
    scores = captioner.log_likelihood(images[:1], [["a dog " * 100, "a dog " * 200]])
    assert np.isfinite(scores).all() and scores[0, 0] == scores[0, 1]


def test_likelihood_needs_the_same_number_of_captions(blip2, images):
    with pytest.raises(ValueError, match="log_likelihood takes the same number of captions"):
        blip2.log_likelihood(images, [["a"], ["b", "c"], ["d"]])


# --- bad input ---------------------------------------------------------------------------------------------
def test_nothing_to_describe_is_refused(captioner):
    with pytest.raises(ValueError, match="0 images and 0 lists of seeds"):
        captioner.sample([], [])


def test_a_blip2_of_another_vocabulary_is_refused(blip2_folder, tmp_path):
    folder = shutil.copytree(blip2_folder, tmp_path / "captioner")
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([f"<extra {k}>" for k in range(8)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match="its tokenizer has 114 tokens and its model embeds 112"):
        captioners.load(profile.load("mini", captioner=str(folder)))
