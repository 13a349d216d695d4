"""The captioners: the shipped BLIP and BLIP-2; a GIT, a ViT-GPT2 and a LLaVA, tiny and random; seeded sampling."""

import shutil
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import transformers
from layouts import change
from PIL import Image
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from dfl_utils.models import blip
from dfl_utils.models import captioner as captioners
from dfl_utils.models.blip import SeededSampling
from dfl_utils.world import profile, scenes, splits

PAD, UNKNOWN, START, END, IMAGE = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<image>"]
PROMPT, OTHERS = "a picture of", "red blue big small dog cat cup on the hill two"
WORDS = [PAD, UNKNOWN, START, END, IMAGE, *f"{PROMPT} {OTHERS}".split()]
LAYERS = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
VISION = dict(**LAYERS, image_size=32, patch_size=16)
LOUD = dict(initializer_range=0.5)  # else every image has the same caption
SIZES = dict(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
TEMPLATE = """{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'image' %}<image> \
{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %} the{% endif %}"""


def words(**options):
    tokenizer = Tokenizer(WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = dict(pad_token=PAD, unk_token=UNKNOWN, cls_token=START, bos_token=START, sep_token=END, eos_token=END)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, **options)


def tiny_git(folder):
    tokens = dict(vocab_size=len(WORDS), bos_token_id=2, eos_token_id=3, pad_token_id=0, max_position_embeddings=40)
    transformers.GitForCausalLM(
        transformers.GitConfig(vision_config=VISION, **LAYERS, **tokens, **LOUD)
    ).save_pretrained(folder)
    transformers.GitProcessor(CLIPImageProcessorPil(**SIZES), words()).save_pretrained(folder)


def tiny_vit_gpt2(folder):
    decoder = transformers.GPT2Config(n_embd=24, n_layer=2, n_head=4, n_positions=40, vocab_size=len(WORDS), **LOUD)
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.ViTConfig(**VISION), decoder
    )
    model = transformers.VisionEncoderDecoderModel(config)
    # As published: beam search and a short length by default, the tokens named here.
    model.generation_config.update(
        num_beams=4, max_length=16, decoder_start_token_id=2, eos_token_id=[3], pad_token_id=0
    )
    model.save_pretrained(folder)
    words().save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)


def tiny_llava(folder):
    tokens = dict(vocab_size=200, bos_token_id=2, eos_token_id=3, pad_token_id=0, max_position_embeddings=80)
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION, projection_dim=32),
        text_config=transformers.LlamaConfig(**LAYERS, **tokens, **LOUD),
        image_token_index=WORDS.index(IMAGE),
        vision_feature_layer=-1,
    )
    model = transformers.LlavaForConditionalGeneration(config)
    model.generation_config.update(eos_token_id=3, pad_token_id=0)
    model.save_pretrained(folder)
    options = dict(patch_size=16, num_additional_image_tokens=1, vision_feature_select_strategy="default")
    tokenizer = words(extra_special_tokens={"image_token": IMAGE})
    transformers.LlavaProcessor(
        CLIPImageProcessorPil(**SIZES), tokenizer, chat_template=TEMPLATE, **options
    ).save_pretrained(folder)


MAKERS = {"git": tiny_git, "vit-gpt2": tiny_vit_gpt2, "llava": tiny_llava}
SHIPPED = {"blip": "blip-base", "blip2": "blip2"}
NAMES = [*SHIPPED, *MAKERS]
CONTINUE = ["blip", "blip2", "git", "vit-gpt2"]  # those that continue the prompt


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = {name: profile.MINI / folder for name, folder in SHIPPED.items()}
    for name, make in MAKERS.items():
        torch.manual_seed(0)
        found[name] = tmp_path_factory.mktemp(name)
        make(found[name])
    return found


def load(folder, **changes):
    changes = {"captioner_prompt": PROMPT, "min_words": 2, "max_words": 8} | changes
    return captioners.load(profile.load("mini", captioner=str(folder), **changes))


@pytest.fixture(scope="module")
def loaded(folders):
    return {name: load(folder) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def images():
    return [Image.fromarray(scenes.render(item.scene)) for item in list(splits.items("coco", "test"))[:3]]


def streams(images, candidates=3):
    return [[(0, image, n) for n in range(candidates)] for image in range(len(images))]


@pytest.mark.parametrize("name", NAMES)
def test_a_caption_does_not_depend_on_its_batch(loaded, images, name, monkeypatch):
    captioner = loaded[name]
    together = captioner.sample(images, streams(images))
    alone = [captioner.sample([image], [seeds])[0] for image, seeds in zip(images, streams(images), strict=True)]
    swapped = captioner.sample(images[::-1], streams(images)[::-1])[::-1]
    few = captioner.sample(images, streams(images, 2))
    monkeypatch.setattr(blip, "SAMPLE_BATCH", 7)  # two images at a time
    assert captioner.sample(images, streams(images)) == together == alone == swapped and few == [
        row[:2] for row in together
    ]
    assert len({text for row in together for text in row}) > 2
    described = captioner.describe(images)
    assert described == [captioner.describe([image])[0] for image in images]


@pytest.mark.parametrize("name", NAMES)
def test_captions_keep_to_the_limits_and_drop_prompt_and_marks(loaded, images, name):
    rows = loaded[name].sample(images, streams(images, 4), temperature=3.0, top_p=1.0)
    for text in (text for row in rows for text in row):
        assert len(text.split()) <= 8 and not text.startswith(PROMPT)
        assert not any(mark in text for mark in (PAD, START, END, "[DEC]", "<pad>"))


# --- against the library -----------------------------------------------------------------------------------
def ids_of(text):
    return [WORDS.index(word) for word in text.split()]


def prompted(captioner, images, prompt):
    """What the library's `generate` takes of a captioner that continues its prompt, and the prompt's length."""
    kind = captioner.model.config.model_type
    if kind in ("blip", "blip-2"):
        inputs = captioner.processor(images=images, text=[prompt] * len(images), return_tensors="pt")
        ends = {"eos_token_id": captioner.end_token_id, "pad_token_id": 1} if kind == "blip-2" else {}
        return inputs | ends, 0
    pixels = captioner.processor.image_processor(images, return_tensors="pt").pixel_values
    ids = torch.tensor([[2, *ids_of(prompt)]] * len(images))
    key = "decoder_input_ids" if kind == "vision-encoder-decoder" else "input_ids"
    return {"pixel_values": pixels, key: ids}, ids.shape[1]


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("name", CONTINUE)
def test_beam_search_equals_the_librarys(loaded, images, name, num_beams):
    captioner = loaded[name]
    inputs, length = prompted(captioner, images, PROMPT)
    options = dict(num_beams=num_beams, do_sample=False, min_new_tokens=2, max_new_tokens=8)
    ids = captioner.model.generate(**inputs, **options)[:, length:]
    theirs = captioner.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert captioner.describe(images, num_beams=num_beams) == [text.removeprefix(PROMPT).strip() for text in theirs]
    assert len(set(theirs)) > 1


@pytest.mark.parametrize("name", [name for name in CONTINUE if name != "blip2"])
def test_decoding_as_blips_repository_equals_the_librarys(folders, images, name):
    penalty = 3.0  # theirs is 1.1, which models as small as these may not show
    settings = dict(repetition_penalty=penalty, limits_count_prompt=True, min_words=5, max_words=12)
    captioner = load(folders[name], **settings)
    inputs, length = prompted(captioner, images, PROMPT)

    def theirs(**options):
        ids = captioner.model.generate(**inputs, do_sample=False, min_length=5, max_length=12, **options)
        texts = captioner.processor.tokenizer.batch_decode(ids[:, length:], skip_special_tokens=True)
        return [text.removeprefix(PROMPT).strip() for text in texts]

    assert captioner.describe(images, num_beams=3) == theirs(num_beams=3)  # so for COCO there, and for NoCaps:
    penalised = load(folders[name], beam_penalty=penalty, **settings).describe(images, num_beams=3)
    assert penalised == theirs(num_beams=3, repetition_penalty=penalty) != theirs(num_beams=3)
    likeliest = captioner.sample(images, streams(images, 1), top_p=1e-9)
    assert [row[0] for row in likeliest] == theirs(num_beams=1, repetition_penalty=penalty)
    assert likeliest != [[text] for text in theirs(num_beams=1)]


def test_a_prompted_captioner_answers_as_the_library_does(loaded, images):
    captioner = loaded["llava"]
    assert "Pil" in type(captioner.processor.image_processor).__name__
    inputs = captioner.processor(images=[images[0]], text=[f"<image> {PROMPT} the"], return_tensors="pt")
    ids = captioner.model.generate(**inputs, num_beams=2, do_sample=False, min_new_tokens=2, max_new_tokens=8)
    ids = ids[:, inputs["input_ids"].shape[1] :]
    theirs = captioner.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert captioner.describe(images[:1], num_beams=2) == theirs


CAPTIONS = [["a red dog", ""], ["two", " the big cat on the hill "], ["cup", "a"]]


def tokens_of(captioner, caption):
    """Token ids from the start to the end, and how many of them are given."""
    if captioner.model.config.model_type not in ("blip", "blip-2"):
        return [2, *ids_of(PROMPT), *ids_of(caption), 3], 1 + len(ids_of(PROMPT))
    start, *ids = captioner.processor.tokenizer(f"{PROMPT} {caption.strip()}".strip()).input_ids
    given = len(captioner.processor.tokenizer(PROMPT).input_ids)
    if captioner.model.config.model_type == "blip-2":
        return [start, *ids, captioner.end_token_id], given
    return [captioner.model.config.text_config.bos_token_id, *ids], given - 1  # its tokenizer writes the end, too


@pytest.mark.parametrize("name", CONTINUE)
def test_likelihood_equals_the_slow_one(loaded, images, name, monkeypatch):
    """Token by token through the library's own forward pass, each time anew."""
    captioner = loaded[name]
    key = "decoder_input_ids" if name == "vit-gpt2" else "input_ids"

    def slow(image, caption):
        pixels = captioner.processor.image_processor([image], return_tensors="pt").pixel_values
        marks = captioner.processor(images=[image], text=[PROMPT]).input_ids[0] if name == "blip2" else []
        before = [token for token in marks if token == captioner.model.config.image_token_id]
        (ids, given), total = tokens_of(captioner, caption), 0.0
        for k in range(given, len(ids)):
            with torch.no_grad():
                logits = captioner.model(pixel_values=pixels, **{key: torch.tensor([before + ids[:k]])}).logits
            total += logits[0, -1].log_softmax(-1)[ids[k]].item()
        return total / (len(ids) - given)

    ours = captioner.log_likelihood(images, CAPTIONS)
    theirs = [[slow(image, text) for text in row] for image, row in zip(images, CAPTIONS, strict=True)]
    assert ours.shape == (3, 2) and ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    summed = captioner.log_likelihood(images, CAPTIONS, summed=True)
    counts = [[len(ids) - given for ids, given in (tokens_of(captioner, text) for text in row)] for row in CAPTIONS]
    np.testing.assert_allclose(summed, ours * counts, rtol=1e-4)
    monkeypatch.setattr(blip, "LIKELIHOOD_BATCH", 2)
    np.testing.assert_allclose(ours, captioner.log_likelihood(images, CAPTIONS), atol=1e-4)
    scores = captioner.log_likelihood(images[:1], [["dog " * 100, "dog " * 200]])  # more than the model's positions
    assert np.isfinite(scores).all() and scores[0, 0] == scores[0, 1]


def test_the_captioner_is_of_the_profiles_type(folders, images):
    captioner = load(folders["git"], dtype="bfloat16")
    assert captioner.model.dtype == torch.bfloat16
    assert captioner.log_likelihood(images, CAPTIONS).dtype == np.float32 and len(captioner.describe(images)) == 3


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("a man's hat", "a man's hat"),
        ("they don't know it's there", "they don't know it's there"),
        ("we're sure she'll say i'm late", "we're sure she'll say i'm late"),
        ("a dogs' bowl", "a dogs ' bowl"),
    ],
)
def test_endings_behind_an_apostrophe_are_joined(loaded, written, text):
    captioner = loaded["blip"]
    ids = captioner.processor.tokenizer(written, add_special_tokens=False).input_ids
    assert captioner._texts(torch.tensor([ids])) == [text]


OTHER_FORMS = {
    **{"num_beams": 3, "num_return_sequences": 3, "return_dict_in_generate": True, "output_scores": True},
    **{"num_beam_groups": 3, "diversity_penalty": 0.5, "stop_strings": ["a"], "force_words_ids": [[5]]},
    **{"penalty_alpha": 0.6, "prompt_lookup_num_tokens": 3, "dola_layers": "high", "max_time": 1e-4},
    **{"guidance_scale": 1.5, "watermarking_config": {"greenlist_ratio": 0.25}},
}


@pytest.mark.parametrize("name", ["git", "vit-gpt2", "llava"])
def test_a_checkpoints_settings_ask_for_no_other_form(folders, loaded, images, tmp_path, name):
    folder = shutil.copytree(folders[name], tmp_path / name)
    change(folder / "generation_config.json", **OTHER_FORMS)
    for ask in (lambda c: c.describe(images), lambda c: c.sample(images, streams(images))):
        assert ask(load(folder)) == ask(loaded[name])


def test_captions_without_a_word_are_said(loaded, images, caplog):
    captioner = loaded["blip"]
    assert captioner._texts(torch.full((2, 3), captioner.end_token_id)) == ["", ""]
    assert "2 captions by" in caplog.text and "are empty: look whether it works" in caplog.text


@pytest.mark.parametrize("name", ["blip", "blip2", "git", "llava"])
def test_nan_makes_no_words(folders, images, name):
    captioner = load(folders[name])
    text = getattr(captioner.model, "text_decoder", getattr(captioner.model, "language_model", captioner.model))
    head = text.get_output_embeddings() or captioner.model.get_output_embeddings()
    head.weight.data.fill_(torch.nan)
    for ask in (lambda: captioner.describe(images), lambda: captioner.sample(images, streams(images))):
        with pytest.raises(ValueError, match="A caption's score by .* holds NaN or infinity: take dtype float32 or bf"):
            ask()
    if name in CONTINUE:
        with pytest.raises(ValueError, match="The likelihood of a caption by .* holds NaN or infinity"):
            captioner.log_likelihood(images, CAPTIONS)


# --- bad input ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("changes", [{"max_words": 100}, {"captioner_prompt": "a dog " * 40}])
@pytest.mark.parametrize("name", ["blip", "blip2"])
def test_captions_longer_than_the_model_are_refused(folders, name, changes):
    words = changes.get("max_words", 8)
    with pytest.raises(ValueError, match=f"max_words is {words}, and .*/{name}.* has .* positions behind the pr"):
        load(folders[name], **changes)


def test_what_cannot_be_asked_is_refused(loaded, images, monkeypatch):
    with pytest.raises(ValueError, match="of the kind llava cannot be asked here how likely .*: take blip, blip-2, g"):
        loaded["llava"].log_likelihood(images, CAPTIONS)
    elsewhere = transformers.BatchFeature({"decoder_input_ids": torch.zeros(1, 1)})  # as of Pix2Struct
    processor = Mock(return_value=elsewhere, apply_chat_template=lambda *_, **__: "")
    monkeypatch.setattr(loaded["llava"], "processor", processor)
    with pytest.raises(ValueError, match="of the kind llava reads its prompt in another way: take another captioner"):
        loaded["llava"].describe(images)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_type": "clip"}, "captioner is no captioner .* its model_type is clip; give a checkpoint of blip"),
        ({"model_type": "pix2struct"}, "captioner is no captioner .* its model_type is pix2struct; give a checkpoint"),
        ({"model_type": "blip-2", "architectures": ["Blip2ForImageTextRetrieval"]}, "which answers or compares"),
        ({"model_type": "mine", "auto_map": {"AutoModel": "mine.Model"}}, "is mine, and code that lies in a check"),
    ],
)
def test_what_is_no_captioner_is_refused(folders, tmp_path, changes, sentence):
    folder = shutil.copytree(folders["git"], tmp_path / "captioner")
    change(folder / "config.json", **changes)
    with pytest.raises(ValueError, match=sentence):
        load(folder)


@pytest.mark.parametrize("name", ["git", "llava"])
def test_a_table_smaller_than_the_vocabulary_is_refused(folders, tmp_path, name):
    tokenizer = words()
    tokenizer.add_tokens([f"<extra {k}>" for k in range(200)])
    folder = shutil.copytree(folders[name], tmp_path / name)
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match="mixes two vocabularies .* has 219 tokens"):
        load(folder)


# --- seeded sampling: by hand, and beside the library's ------------------------------------------------------
def drawn(probabilities, uniform, **options):
    scores = torch.tensor([probabilities]).log()
    out = SeededSampling(torch.tensor([[uniform]]), **options)(torch.zeros(1, 0), scores)
    return out.argmax().item()


def test_nucleus_by_hand():
    # p = 0.9 keeps 0.5, 0.3 and 0.15 (their sum passes 0.9), so uniforms are spread over a mass of 0.95.
    probabilities = [0.05, 0.5, 0.15, 0.3]
    assert drawn(probabilities, 0.52, top_p=0.9) == 1  # 0.494 < 0.5
    assert drawn(probabilities, 0.53, top_p=0.9) == 3  # 0.5035
    assert drawn(probabilities, 0.85, top_p=0.9) == 2  # 0.8075
    assert drawn(probabilities, 0.999, top_p=0.9) == 2  # the token of 0.05 is cut off
    assert drawn(probabilities, 0.999, top_p=1.0) == 0


def test_top_k_and_temperature_by_hand():
    assert drawn([0.05, 0.5, 0.15, 0.3], 0.7, top_k=2) == 3  # 0.625 and 0.375 are left
    assert drawn([0.2, 0.8], 0.5, temperature=1.0) == 1
    assert drawn([0.2, 0.8], 0.75, temperature=1e6) == 0  # two equal halves, in order of their logits: 1, then 0


def test_nucleus_has_the_librarys_support():
    torch.manual_seed(0)
    scores = 3 * torch.randn(8, 2000)
    kept = transformers.TopPLogitsWarper(0.9)(None, scores.clone()).isfinite()
    seen = torch.zeros_like(kept)
    for uniform in torch.linspace(0, 0.9999, 3000):
        seen |= SeededSampling(uniform.expand(8, 1), top_p=0.9)(torch.zeros(8, 0), scores.clone()).bool()
    assert not (seen & ~kept).any()
    assert (seen & kept).sum() > 0.9 * kept.sum()  # a grid of 3,000 uniforms passes over the rarest


@pytest.mark.parametrize("spread", [1, 5])  # a mass of hundreds of tokens; of a few in most rows
def test_how_many_tokens_are_looked_at_first_changes_no_draw(monkeypatch, spread):
    random = torch.Generator().manual_seed(0)
    scores, uniforms = spread * torch.randn(64, 3000, generator=random), torch.rand(64, 1, generator=random)
    draws = []
    for widths in (blip.NUCLEUS_WIDTHS, (256, 256), (3000, 3000)):
        monkeypatch.setattr(blip, "NUCLEUS_WIDTHS", widths)
        draws.append(SeededSampling(uniforms, top_p=0.9)(torch.zeros(64, 0), scores).argmax(1).tolist())
    assert draws[0] == draws[1] == draws[2] and len(set(draws[0])) > 8


@pytest.mark.parametrize("wrong", [{"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}, {"temperature": 0.0}])
def test_impossible_sampling_is_refused(wrong):
    with pytest.raises(ValueError, match="Sampling needs"):
        SeededSampling(torch.zeros(1, 1), **wrong)
