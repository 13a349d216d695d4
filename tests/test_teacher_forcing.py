"""Teacher forcing: targets by hand, logits token by token, and the loss of transformers' own models."""

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from dfl_utils.models import captioner as captioners
from dfl_utils.training.losses import target_logits
from dfl_utils.training.pairs import read_captions
from dfl_utils.world import profile, scenes, splits

CAPTIONS = ["a red key", "there is a big yellow house left of a small blue cow on a pink background", "a giraffe"]


@pytest.fixture(scope="module", params=["blip-base", "blip2"])
def captioner(request):
    return captioners.load(profile.load("mini").pair(captioner=request.param))


@pytest.fixture(scope="module")
def image_embeds(captioner):
    items = list(splits.items("coco", "val"))[: len(CAPTIONS)]
    return captioner.image_embeds([Image.fromarray(scenes.render(item.scene)) for item in items])


@pytest.fixture(scope="module")
def caption(captioner):
    return read_captions(captioner, CAPTIONS)


@pytest.fixture(scope="module")
@torch.no_grad()
def logits(captioner, image_embeds, caption):
    return target_logits(captioner, image_embeds, caption)


def words_of(captioner, text):
    """Tokens of a caption as they follow the prompt."""
    tokenizer = captioner.processor.tokenizer
    prompt = tokenizer(captioner.prompt, add_special_tokens=False).input_ids
    whole = tokenizer(f"{captioner.prompt} {text}", add_special_tokens=False).input_ids
    assert whole[: len(prompt)] == prompt
    return whole[len(prompt) :]


def test_every_token_after_the_prompt_is_a_target_and_the_end_too(captioner, caption):
    prompt, end = captioner._prompt_ids(), captioner.end_token_id
    pad = captioner.model.config.text_config.pad_token_id
    words = [words_of(captioner, text) for text in CAPTIONS]
    longest = len(prompt) + max(map(len, words))
    assert caption.counts == tuple(map(len, words))
    for row, own in enumerate(words):
        rest = longest - len(prompt) - len(own)
        assert caption.input_ids[row].tolist() == [*prompt, *own] + [pad] * rest
        assert caption.attention_mask[row].tolist() == [1] * (longest - rest) + [0] * rest
        places = [False] * (len(prompt) - 1) + [True] * (len(own) + 1) + [False] * rest
        assert caption.places[row].tolist() == places  # the prompt's last token predicts the first word
    assert caption.targets.tolist() == [token for own in words for token in [*own, end]]
    assert caption.words.tolist() == [flag for own in words for flag in [True] * len(own) + [False]]


@torch.no_grad()
def test_the_logits_of_one_pass_are_those_of_a_call_a_token(captioner, image_embeds, caption, logits):
    by_hand = []
    for row, text in enumerate(CAPTIONS):
        read = captioner._prompt_ids()
        for token in [*words_of(captioner, text), None]:
            by_hand.append(captioner._logits(image_embeds[row : row + 1], torch.tensor([read]))[0, -1])
            read = [*read, token]
    torch.testing.assert_close(logits, torch.stack(by_hand), atol=1e-3, rtol=1e-4)


@torch.no_grad()
def test_the_loss_is_the_models_own(captioner, image_embeds, caption, logits):
    """transformers' loss of labels: -100 on the image's places, the prompt and the padding."""
    pad, prompt = captioner.model.config.text_config.pad_token_id, len(captioner._prompt_ids())
    whole = [[*captioner._prompt_ids(), *words_of(captioner, text), captioner.end_token_id] for text in CAPTIONS]
    longest = max(map(len, whole))
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in whole])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in whole])
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :prompt] = -100
    items = list(splits.items("coco", "val"))[: len(CAPTIONS)]
    images = [Image.fromarray(scenes.render(item.scene)) for item in items]
    pixel_values = captioner.processor.image_processor(images, return_tensors="pt").pixel_values
    config = captioner.model.config
    if config.model_type == "blip-2":  # its images stand in the text as tokens of their own

        def before(value):
            return torch.full((len(CAPTIONS), config.num_query_tokens), value)

        ids = torch.cat([before(config.image_token_index), ids], 1)
        mask, labels = torch.cat([before(1), mask], 1), torch.cat([before(-100), labels], 1)
    own = captioner.model(pixel_values=pixel_values, input_ids=ids, attention_mask=mask, labels=labels).loss
    torch.testing.assert_close(F.cross_entropy(logits, caption.targets), own, atol=1e-5, rtol=1e-5)
