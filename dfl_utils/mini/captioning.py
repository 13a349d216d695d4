"""Pretraining of the captioners: ground the vision tower, learn captions from the web, finetune on COCO-like pairs."""

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from dfl_utils.mini import architectures, grounding, web
from dfl_utils.mini.autoencoder import pixels
from dfl_utils.mini.training import Schedule, Training
from dfl_utils.world import scenes, splits

BATCH = 64
STARTS = {"base": (1000,)}  # steps of the web stage whose weights are kept, for a finetuning with headroom


class RestrictedHead:
    """Caption cross-entropy over the used tokens alone: the same logits as the model's, a hundred times fewer.

    The unused 30,400 logits are held at `architectures.UNUSED_LOGIT`, so leaving them out changes the loss by less
    than 1e-4 and saves more than half of a step.
    """

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model, tokenizer
        self.used = architectures.used_tokens(tokenizer)
        self.compact = torch.full((len(tokenizer),), -1)
        self.compact[self.used] = torch.arange(len(self.used))
        # [CLS] becomes [DEC]; the prompt's tokens are given, not learned. Position 0 is never a target.
        self.prompt_tokens = len(tokenizer(architectures.PROMPT).input_ids) - 1

    def loss(self, images: Tensor, texts: list[str]) -> Tensor:
        """Images `(B, 3, 64, 64)` in [-1, 1] and one caption each -> mean negative log-likelihood a token."""
        tokens = self.tokenizer([f"{architectures.PROMPT} {text}" for text in texts], padding=True, return_tensors="pt")
        input_ids = tokens.input_ids
        input_ids[:, 0] = self.tokenizer.bos_token_id
        targets = input_ids.masked_fill(tokens.attention_mask == 0, -100)
        targets[:, : self.prompt_tokens] = -100
        image_embeds = self.model.vision_model(images).last_hidden_state
        decoder = self.model.text_decoder
        hidden = decoder.bert(input_ids=input_ids, attention_mask=tokens.attention_mask,
                              encoder_hidden_states=image_embeds, is_decoder=True).last_hidden_state  # fmt: skip
        head = decoder.cls.predictions
        logits = F.linear(head.transform(hidden[:, :-1]), head.decoder.weight[self.used], head.decoder.bias[self.used])
        targets = targets[:, 1:]
        targets = torch.where(targets < 0, targets, self.compact[targets.clamp(min=0)])
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)


def web_pairs(step: int, name: str) -> tuple[list[scenes.Scene], list[str]]:
    """Web scenes of a step and one fresh web caption each; `name` keeps two models' captions apart."""
    batch = [web.scene(BATCH * step + k) for k in range(BATCH)]
    return batch, [scenes.web_caption(scene, f"{name}/{step}/{k}") for k, scene in enumerate(batch)]


def coco_pairs(step: int, items: list[splits.Item]) -> tuple[list[scenes.Scene], list[str]]:
    """In-domain scenes of a step, in their order; each pass over them takes the next of their references."""
    turns = [divmod(BATCH * step + k, len(items)) for k in range(BATCH)]
    chosen = [(items[place], epoch) for epoch, place in turns]
    return [item.scene for item, _ in chosen], [item.captions[epoch % 5] for item, epoch in chosen]


def _captioning(
    folder: Path,
    model,
    pairs: Callable[[int], tuple[list[scenes.Scene], list[str]]],
    schedule: Schedule,
    until: int | None = None,
):
    head = RestrictedHead(model, architectures.bert_tokenizer())

    def loss(step: int):
        batch, texts = pairs(step)
        return head.loss(pixels([scenes.render(scene) for scene in batch]), texts), {}

    Training(folder, model, loss, schedule).run(until)


def train(folder: Path, size: str, ground_steps: int, web_steps: int, passes: int):
    """Train a captioner of `size` from nothing; the finetuning sees in-domain categories only, as BLIP's on COCO."""
    torch.manual_seed({"base": 5, "large": 6}[size])
    model = architectures.blip(size)
    width = model.config.vision_config.hidden_size
    grounding.train(folder / "grounding", model.vision_model, width, ground_steps, seed=12)

    finetuning = list(splits.items("coco", "train"))
    schedule = Schedule(web_steps, lr=1e-3, warmup=200, ema_decay=0.998)
    web = folder / "web", model, lambda step: web_pairs(step, "blip"), schedule
    for step in STARTS.get(size, ()):  # what follows goes on from the state that this leaves
        _captioning(*web, step)
        copy.deepcopy(model).half().save_pretrained(folder / "starts" / str(step))
    _captioning(*web)
    # Gentle: it teaches the references' wording, and what the web taught of novel things is not all forgotten.
    schedule = Schedule(passes * len(finetuning) // BATCH, lr=1e-4, warmup=10, ema_decay=0.9)
    _captioning(folder / "coco", model, lambda step: coco_pairs(step, finetuning), schedule)
    return model
