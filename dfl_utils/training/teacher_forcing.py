"""Teacher forcing: what a captioner predicts at every token of a given caption, in one pass (Eq. 1).

Only the positions that predict a token of the caption, or its end, go through the head, whose vocabulary is most of a
small captioner's work.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dfl_utils.models.blip import BlipCaptioner, Captioner


@dataclass(frozen=True)
class Caption:
    """B captions as a captioner reads them."""

    # input_ids, attention_mask: `(B, T)` [BOS], prompt and caption, padded to the right; 1 where there is a token
    input_ids: Tensor
    attention_mask: Tensor
    places: Tensor  # `(B, T)` bool, the positions whose prediction is a target
    targets: Tensor  # `(N,)` the tokens to be predicted there, row after row, each caption's end with it
    counts: tuple[int, ...]  # B numbers of caption tokens, the end not counted

    @property
    def words(self) -> Tensor:
        """`(N,)` bool: which targets are tokens of a caption and no ends."""
        return torch.cat([torch.arange(count + 1) < count for count in self.counts]).to(self.targets.device)

    def to(self, device) -> "Caption":
        moved = (t.to(device) for t in (self.input_ids, self.attention_mask, self.places, self.targets))
        return Caption(*moved, self.counts)

    def rows(self, chosen: slice) -> "Caption":
        """Those of the captions in `chosen`, a slice of step 1."""
        keep = torch.zeros(len(self.counts), dtype=torch.bool)
        keep[chosen] = True
        of_target = keep.repeat_interleave(torch.tensor(self.counts) + 1).to(self.targets.device)
        places, ids, mask = (t[chosen] for t in (self.places, self.input_ids, self.attention_mask))
        return Caption(ids, mask, places, self.targets[of_target], self.counts[chosen])


def read(captioner: Captioner, captions: Sequence[str], image_tokens: int) -> Caption:
    """Tokens and targets of captions, without the prompt, for a captioner that sees `image_tokens` of an image.

    Raises:
        ValueError: an empty caption, or one longer than the captioner's positions.
    """
    prompt = captioner._prompt_ids()
    room = captioner._positions(image_tokens) - len(prompt)
    targets = [captioner._caption_ids(text, image_tokens) for text in captions]
    for text, ids in zip(captions, targets, strict=True):
        if not text.strip():
            raise ValueError("A caption is empty, and there is nothing to learn from it: leave its pair out.")
        if len(ids) > room:
            raise ValueError(
                f"The caption {text[:40]!r}... is longer than the {room} tokens that the captioner reads: "
                "leave it out or shorten it."
            )
    rows = [torch.cat([torch.tensor(prompt), ids[:-1]]) for ids in targets]
    pad = captioner.model.config.text_config.pad_token_id
    attention_mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    places = attention_mask.bool() & (torch.arange(attention_mask.shape[1]) >= len(prompt) - 1)
    return Caption(
        pad_sequence(rows, batch_first=True, padding_value=pad),
        attention_mask,
        places,
        torch.cat(targets),
        tuple(len(ids) - 1 for ids in targets),
    )


def target_logits(captioner: Captioner, image_embeds: Tensor, caption: Caption) -> Tensor:
    """Logits `(N, V)` at the places of the targets, given what the text side sees of B images, `(B, T_image, D)`."""
    if isinstance(captioner, BlipCaptioner):
        decoder = captioner.model.text_decoder
        hidden = decoder.bert(
            input_ids=caption.input_ids,
            attention_mask=caption.attention_mask,
            is_decoder=True,
            use_cache=False,
            **captioner._seen(image_embeds),
        ).last_hidden_state
        return decoder.cls(hidden[caption.places])
    language_model = captioner.model.language_model
    inputs = captioner._seen(image_embeds, caption.input_ids)
    image_tokens = image_embeds.shape[1]
    inputs["attention_mask"] = torch.cat(
        [inputs["attention_mask"][:, :image_tokens], caption.attention_mask], 1
    )  # OPT counts its positions along the mask
    hidden = language_model.model(**inputs).last_hidden_state[:, image_tokens:]
    return language_model.lm_head(hidden[caption.places])
