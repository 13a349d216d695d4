"""What every captioner does, and BLIP and BLIP-2: sampled (Section 3.1), read by beam search, or asked."""

import logging
import re
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoProcessor,
    Blip2ForConditionalGeneration,
    BlipForConditionalGeneration,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedConfig,
    PreTrainedModel,
)

from dfl_utils.models import checkpoint
from dfl_utils.world.profile import Profile

_log = logging.getLogger(__name__)

# BERT's tokens of "man's" come back as "man ' s"; of "dogs' bowl" the apostrophe belongs to no ending.
CLITIC = re.compile(r"(?<=\w) ' (?=(?:s|re|ve|d|ll|m)\b)|(?<=n) ' (?=t\b)")
# How many sentences are wanted, in which form and by which search, is the caller's to say, whatever a checkpoint's
# settings ask for.
ONE_SENTENCE = {
    "num_return_sequences": 1,
    "return_dict_in_generate": False,
    "output_scores": False,
    "output_logits": False,
    "output_attentions": False,
    "output_hidden_states": False,
    **dict.fromkeys(("stop_strings", "max_time", "guidance_scale", "watermarking_config", "token_healing")),
    **dict.fromkeys(("num_beam_groups", "diversity_penalty", "force_words_ids", "constraints")),  # other searches
    **dict.fromkeys(("penalty_alpha", "prompt_lookup_num_tokens", "assistant_early_exit", "dola_layers")),
}
EVERYWHERE = slice(None)  # of the positions whose logits are wanted
# Captions sampled at a time on a CPU: of more, all wait for the longest, and their scores leave the processor's cache.
SAMPLE_BATCH = 80
LIKELIHOOD_BATCH = 32  # captions scored at a time: each token costs a row of the vocabulary's size
# Tokens looked at; of a row whose mass the first do not hold clearly, the second; where these do not, all are sorted.
NUCLEUS_WIDTHS, CLEARLY = (32, 256), 1e-3


class Captioner:
    """A checkpoint and its processor; the common part of all captioners.

    Attributes:
        model: of class `model_class`, in evaluation mode.
        processor: its processor (Pillow back end in every profile).
        profile: says how long captions are, and what repetition costs (a penalty of 1: the checkpoint's own).
        prompt: text that the captions continue, cut from the output.
        start_token_id, end_token_id, pad_token_id: tokens that begin, end and fill up a caption.
        gives_likelihood: whether it can be asked how likely it finds a caption.
    """

    gives_likelihood = True
    model_class: type[PreTrainedModel]

    def __init__(self, model: PreTrainedModel, processor, profile: Profile):
        self.model, self.processor, self.profile = model, processor, profile
        self.prompt = profile.captioner_prompt
        checkpoint.check_vocabulary(model.name_or_path, len(processor.tokenizer), self._vocab_size())

    def _vocab_size(self) -> int:
        return self.text_config.vocab_size

    @staticmethod
    def load_processor(folder: str, **options):
        """The checkpoint's processor: at least its `image_processor` and its `tokenizer`."""
        return AutoProcessor.from_pretrained(folder, backend="pil", **options)

    @property
    def text_config(self) -> PreTrainedConfig:
        """The configuration of the text side."""
        return self.model.config.text_config

    @property
    def start_token_id(self) -> int:
        return self.text_config.bos_token_id

    @property
    def end_token_id(self) -> int:
        return self.text_config.eos_token_id

    @property
    def pad_token_id(self) -> int:
        return self.text_config.pad_token_id

    def _positions(self) -> int:
        """Places of the text side for prompt and caption."""
        return self.text_config.max_position_embeddings

    @torch.no_grad()
    def image_embeds(self, images: Sequence[Image.Image]) -> Tensor:
        """What the text side sees of RGB images, `(B, T, D)`."""
        pixels = self.processor.image_processor(list(images), return_tensors="pt").pixel_values
        return self._encode(pixels.to(self.model.device, self.model.dtype))

    def sample(
        self,
        images: Sequence[Image.Image],
        streams: Sequence[Sequence[Sequence[int]]],
        *,
        top_p: float = 0.9,
        top_k: int = 0,
        temperature: float = 1.0,
    ) -> list[list[str]]:
        """B lists of N captions by sampling, without the prompt; the paper: N = 10, p = 0.9 (Appendix A.2).

        Args:
            images: B RGB images, at least one.
            streams: B lists of N seeds, each a sequence of integers; caption (b, n) depends on image b and seed
                (b, n) alone.
            top_p, top_k, temperature: see `SeededSampling`.
        """
        per_image = len(streams[0])
        step = max(1, SAMPLE_BATCH // per_image) if self.model.device.type == "cpu" else len(images)
        texts = []
        for k in range(0, len(images), step):
            seeds = [seed for row in streams[k : k + step] for seed in row]
            embeds = self.image_embeds(images[k : k + step]).repeat_interleave(per_image, 0)
            texts += self._generate(embeds, **self._sampling(seeds, top_p, top_k, temperature))
        return [texts[k : k + per_image] for k in range(0, len(texts), per_image)]

    def _sampling(self, seeds: Sequence[Sequence[int]], *asked) -> dict[str, object]:
        """Makes `generate`'s greedy search draw one caption a seed; what is asked are `SeededSampling`'s arguments."""
        steps = self.profile.max_words + 1
        uniforms = np.stack([np.random.default_rng(list(seed)).random(steps, dtype=np.float32) for seed in seeds])
        sampling = SeededSampling(torch.from_numpy(uniforms).to(self.model.device), *asked)
        return self._search(1, self.profile.repetition_penalty, sampling)

    def _search(self, num_beams: int, penalty: float, *processors: LogitsProcessor) -> dict[str, object]:
        """What `generate` is told of its search."""
        refusing = LogitsProcessorList([RefuseNaN(self.model.name_or_path), *processors])
        repetition = {} if penalty == 1 else {"repetition_penalty": penalty}
        return {"num_beams": num_beams, "logits_processor": refusing, **repetition}

    def describe(self, images: Sequence[Image.Image], *, num_beams: int = 3) -> list[str]:
        """One caption an image by beam search."""
        return self._generate(self.image_embeds(images), **self._search(num_beams, self.profile.beam_penalty))

    def log_likelihood(
        self, images: Sequence[Image.Image], captions: Sequence[Sequence[str]], *, summed: bool = False
    ) -> np.ndarray:
        """How likely the captioner finds given captions, `(B, N)` float32: mean log-probability (nats) a token.

        The caption's tokens and the end token count. What exceeds the model's positions is not read; a warning says so.

        Args:
            images: B RGB images.
            captions: B lists of N >= 1 texts without the prompt.
            summed: the sum over tokens instead, which is log p(caption | image).
        """
        embeds, per_image = self.image_embeds(images), len(captions[0])
        texts = [text for row in captions for text in row]
        targets = [self._caption_ids(text) for text in texts]
        room = self._positions() - len(self._prompt_ids())
        if longer := [text for text, ids in zip(texts, targets, strict=True) if len(ids) > room]:
            _log.warning("the captioner reads only the first %d tokens of longer captions, such as %r", room, longer[0])
        parts = [
            self._log_probability(
                embeds[torch.arange(k, min(k + LIKELIHOOD_BATCH, len(targets))) // per_image],
                targets[k : k + LIKELIHOOD_BATCH],
                summed,
            )
            for k in range(0, len(targets), LIKELIHOOD_BATCH)
        ]
        values = torch.cat(parts).reshape(len(images), per_image).float().cpu().numpy()
        return checkpoint.require_finite(values, "The likelihood of a caption", self.model.name_or_path)

    def _prompt_ids(self) -> list[int]:
        ids = self.processor.tokenizer(self.prompt, add_special_tokens=False).input_ids
        return [self.start_token_id, *ids]

    def _caption_ids(self, caption: str) -> Tensor:
        """Tokens of a caption as they follow the prompt, and the end token; not more than the model has places."""
        caption = caption.strip()
        text = f" {caption}" if self.prompt and caption else caption  # byte-level tokens carry the space before them
        ids = self.processor.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        room = self._positions() - len(self._prompt_ids())
        return torch.tensor([*ids[: max(room, 0)], self.end_token_id])

    @torch.no_grad()
    def _log_probability(self, image_embeds: Tensor, targets: Sequence[Tensor], summed: bool) -> Tensor:
        device, prompt_ids = image_embeds.device, torch.tensor(self._prompt_ids())
        padded = pad_sequence(list(targets), batch_first=True, padding_value=-1).to(device)
        real = padded >= 0
        inputs = torch.cat([prompt_ids.expand(len(padded), -1).to(device), padded[:, :-1].clamp(min=0)], 1)
        logits = self._logits(image_embeds, inputs)[:, len(prompt_ids) - 1 :].float()
        chosen = logits.gather(-1, padded.clamp(min=0).unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)
        total = (chosen * real).sum(1)
        return total if summed else total / real.sum(1)

    @torch.no_grad()
    def _generate(self, image_embeds: Tensor, **options) -> list[str]:
        # The text side is called directly, so that an image is encoded once for all its candidates.
        prompt_ids = torch.tensor([self._prompt_ids()], device=image_embeds.device).repeat(len(image_embeds), 1)
        limits = self._limits(prompt_ids.shape[1])
        not_yet = EndNotBefore(self.end_token_id, limits["min_new_tokens"])
        options["logits_processor"] = LogitsProcessorList([not_yet, *options["logits_processor"]])
        ends = {"eos_token_id": self.end_token_id, "pad_token_id": self.pad_token_id}
        limits |= {"min_new_tokens": None, "min_length": 0}
        return self._texts(self._continue(image_embeds, prompt_ids, **ends, **limits, **options))

    def _limits(self, prompt: int) -> dict[str, object]:
        """What `generate` is told of every caption behind a prompt of so many tokens."""
        counted = prompt if self.profile.limits_count_prompt else 0
        return ONE_SENTENCE | {
            "do_sample": False,
            "min_new_tokens": max(self.profile.min_words - counted, 0),
            "max_new_tokens": max(self.profile.max_words - counted, 1),
        }

    def check_lengths(self) -> None:
        """ValueError where the model has too few positions for its prompt and the longest caption."""
        prompt = len(self._prompt_ids())
        room = self._positions() - prompt
        if self._limits(prompt)["max_new_tokens"] > room:
            raise ValueError(
                f"max_words is {self.profile.max_words}, and {self.model.name_or_path} has {max(room, 0)} positions "
                f"behind the prompt {self.prompt!r}: give fewer, or a shorter captioner_prompt."
            )

    def _texts(self, ids: Tensor) -> list[str]:
        """Sentences as people write them, with single spaces and none before an ending such as that of "man's"."""
        texts = self.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
        captions = [CLITIC.sub("'", " ".join(text.split())) for text in texts]
        if empty := captions.count(""):
            _log.warning("%d captions by %s are empty: look whether it works", empty, self.model.name_or_path)
        return captions


class BlipCaptioner(Captioner):
    """BLIP: the text decoder attends to the vision tower's tokens, `(B, patches + 1, D)`."""

    model_class = BlipForConditionalGeneration

    @property
    def end_token_id(self) -> int:
        return self.text_config.sep_token_id

    def _encode(self, pixels: Tensor) -> Tensor:
        return self.model.vision_model(pixels).last_hidden_state

    def _logits(self, image_embeds: Tensor, input_ids: Tensor, attention_mask=None, places=EVERYWHERE) -> Tensor:
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, **self._seen(image_embeds)}
        hidden = self.model.text_decoder.bert(**inputs, is_decoder=True, use_cache=False).last_hidden_state
        return self.model.text_decoder.cls(hidden[places])

    def _continue(self, image_embeds: Tensor, prompt_ids: Tensor, **options) -> Tensor:
        mask = torch.ones_like(prompt_ids)
        ids = self.model.text_decoder.generate(
            input_ids=prompt_ids, attention_mask=mask, **self._seen(image_embeds), **options
        )
        return ids[:, prompt_ids.shape[1] :]

    def _seen(self, image_embeds: Tensor) -> dict[str, Tensor]:
        mask = image_embeds.new_ones(image_embeds.shape[:2], dtype=torch.long)
        return {"encoder_hidden_states": image_embeds, "encoder_attention_mask": mask}


class Blip2Captioner(Captioner):
    """BLIP-2: the Q-Former's queries, projected to `(B, num_query_tokens, D)`, stand before the prompt of OPT."""

    model_class = Blip2ForConditionalGeneration

    def _encode(self, pixels: Tensor) -> Tensor:
        return self.model.get_image_features(pixels).pooler_output

    def _positions(self) -> int:
        return super()._positions() - self.model.config.num_query_tokens  # those that an image takes

    def _logits(self, image_embeds: Tensor, input_ids: Tensor, attention_mask=None, places=EVERYWHERE) -> Tensor:
        inputs, width = self._seen(image_embeds, input_ids), image_embeds.shape[1]
        if attention_mask is not None:  # OPT counts its positions along the mask
            inputs["attention_mask"] = torch.cat([inputs["attention_mask"][:, :width], attention_mask], 1)
        hidden = self.model.language_model.model(**inputs, use_cache=False).last_hidden_state[:, width:]
        return self.model.language_model.lm_head(hidden[places])

    def _continue(self, image_embeds: Tensor, prompt_ids: Tensor, **options) -> Tensor:
        return self.model.language_model.generate(**self._seen(image_embeds, prompt_ids), **options)

    def _seen(self, image_embeds: Tensor, input_ids: Tensor) -> dict[str, Tensor]:
        embeds = torch.cat([image_embeds, self.model.language_model.get_input_embeddings()(input_ids)], 1)
        return {"inputs_embeds": embeds, "attention_mask": embeds.new_ones(embeds.shape[:2], dtype=torch.long)}


def check_sampling(top_p: float, top_k: int, temperature: float) -> None:
    """ValueError for sampling settings that mean nothing."""
    if not 0 < top_p <= 1 or top_k < 0 or temperature <= 0:
        raise ValueError(
            f"Sampling needs 0 < top_p <= 1, top_k >= 0 and temperature > 0, not top_p={top_p}, top_k={top_k}, "
            f"temperature={temperature}."
        )


class RefuseNaN(LogitsProcessor):
    """ValueError where a model's scores are NaN: beam search would make words of them."""

    def __init__(self, model: str):
        self.model = model

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if scores[:, 0].isnan().any():  # a model's NaN reaches every word's score
            raise checkpoint.not_finite("A caption's score", self.model)
        return scores


class EndNotBefore(LogitsProcessor):
    """No end before `tokens` are written, as by `min_new_tokens`, which copies all scores twice a token to say so."""

    def __init__(self, end_token_id: int, tokens: int):
        self.end_token_id, self.left = end_token_id, tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.left > 0:
            scores[:, self.end_token_id] = -torch.inf
            self.left -= 1
        return scores


class SeededSampling(LogitsProcessor):
    """Top-p, top-k and tempered sampling with one random stream a caption.

    `generate` draws a whole batch from one stream. Here row r takes its uniforms from `uniforms[r]`, and greedy search
    gets the drawn token as the only one that scores: a caption is the same in any batch and any order.

    Args:
        uniforms: `(B, steps)` in [0, 1), one a token.
        top_p: smallest set of tokens whose probability reaches this is kept; 1 keeps all.
        top_k: only the k likeliest tokens are kept; 0 keeps all.
        temperature: logits are divided by it.
    """

    def __init__(self, uniforms: Tensor, top_p: float = 1.0, top_k: int = 0, temperature: float = 1.0):
        check_sampling(top_p, top_k, temperature)
        self.uniforms, self.top_p, self.top_k, self.temperature = uniforms, top_p, top_k, temperature
        self.step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`(B, V)` uint8: 1 for the token drawn, else 0, which takes a quarter of the time to search."""
        probabilities = (scores if self.temperature == 1 else scores / self.temperature).softmax(-1)
        likely, tokens = self._likeliest(probabilities)
        if self.top_k:
            likely = likely / likely.sum(-1, keepdim=True)
        before = likely.cumsum(-1) - likely
        kept = likely * (before < self.top_p)
        target = self.uniforms[:, self.step, None] * kept.sum(-1, keepdim=True)
        choice = (kept.cumsum(-1) <= target).sum(-1, keepdim=True).clamp(max=likely.shape[-1] - 1)
        self.step += 1
        return torch.zeros_like(scores, dtype=torch.uint8).scatter_(1, tokens.gather(1, choice), 1)

    def _likeliest(self, probabilities: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities and tokens `(B, K)`, the likeliest first, that hold all that may be drawn."""
        size = probabilities.shape[-1]
        if self.top_k:
            return probabilities.topk(min(self.top_k, size))
        few, width = (min(width, size) for width in NUCLEUS_WIDTHS)
        first = probabilities.topk(few if self.top_p + CLEARLY < 1 else width)
        # As wide as ever: what is added up differently is rounded differently.
        likely, tokens = (F.pad(values, (0, width - values.shape[1])) for values in first)
        if (unclear := likely.sum(-1) < self.top_p + CLEARLY).any() and first[0].shape[1] < width:
            likely[unclear], tokens[unclear] = probabilities[unclear].topk(width)
        return probabilities.topk(size) if (likely.sum(-1) < self.top_p).any() else (likely, tokens)
