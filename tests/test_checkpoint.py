"""Bad checkpoints and profiles are refused in one sentence; the paper's layout loads through the same code."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from layouts import fp16, pickled, rewrite, shard
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import BlipConfig, BlipForConditionalGeneration, CLIPTextConfig, CLIPTextModel

from dfl_utils.game.scorer import Scorer
from dfl_utils.mini import architectures
from dfl_utils.models import checkpoint, layout, similarity
from dfl_utils.models.captioner import Captioner
from dfl_utils.models.generator import Generator
from dfl_utils.store import provenance
from dfl_utils.store.store import RunStore
from dfl_utils.world import profile
from dfl_utils.world.data import Example
from dfl_utils.world.profile import MINI

NEEDS = {"blip-base": (layout.TOKENIZER, layout.PROCESSOR)}


@pytest.fixture
def copy(tmp_path):
    """A copy of a shipped model that a test may damage."""

    def make(name):
        return shutil.copytree(MINI / name, tmp_path / name)

    return make


def test_a_whole_checkpoint_is_registered(copy, monkeypatch):
    monkeypatch.setattr(provenance, "used", {})
    checkpoint.check(str(copy("dino")), "dino")
    assert provenance.used["dino"]["how"] == "loaded"
    assert len(provenance.used["dino"]["sha256"]) == 64


@pytest.mark.parametrize(
    ("model", "lost", "sentence"),
    [
        ("dino", "config.json", "lacks config.json"),
        ("dino", "model.safetensors", "lacks its .*weights"),
        ("stable-diffusion", "unet", "lacks the folder unet"),
        ("stable-diffusion", "vae/config.json", "vae lacks config.json"),
        ("stable-diffusion", "text_encoder/model.safetensors", "text_encoder lacks its"),
        ("stable-diffusion", "tokenizer/tokenizer.json", "tokenizer lacks tokenizer.json or vocab.txt"),
        ("stable-diffusion", "scheduler/scheduler_config.json", "scheduler lacks scheduler_config.json"),
        ("blip-base", "tokenizer.json", "lacks tokenizer.json"),
        ("blip-base", "processor_config.json", "lacks processor_config.json or preprocessor_config.json"),
    ],
)
def test_a_missing_file_is_named(copy, model, lost, sentence):
    folder = copy(model)
    path = folder / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(FileNotFoundError, match=sentence):
        checkpoint.check(str(folder), model, *({"blip-base": (layout.TOKENIZER, layout.PROCESSOR)}.get(model, ())))


def test_the_mend_is_a_command_that_works():
    with pytest.raises(FileNotFoundError, match="git checkout -- data/paper` or rebuild"):
        checkpoint.check(str(MINI.parent / "paper"), "dino")


def test_a_missing_tensor_is_refused(copy):
    file = copy("dino") / "model.safetensors"
    weights = load_file(file)
    del weights["embeddings.position_embeddings"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lack embeddings.position_embeddings"):
        similarity.load_dino(profile.load("mini", dino=str(file.parent)))


def test_weights_of_another_size_are_refused(copy):
    folder = copy("dino")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))
    with pytest.raises(ValueError, match="do not fit its config.json"):
        similarity.load_dino(profile.load("mini", dino=str(folder)))


def test_half_written_weights_are_refused(copy):
    file = copy("dino") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="model.safetensors is damaged or half-written"):
        checkpoint.check(str(file.parent), "dino")


@pytest.mark.parametrize("content", ['{"hidden_size": ', "[]"])
def test_broken_json_is_refused(copy, content):
    folder = copy("dino")
    (folder / "config.json").write_text(content)
    with pytest.raises(ValueError, match="config.json is not valid JSON"):
        checkpoint.check(str(folder), "dino")


def test_pickles_are_not_loaded(copy):
    folder = copy("dino")
    pickled(folder)
    with pytest.raises(checkpoint.PickledWeights, match="pytorch_model.bin is a pickle, and pickles are not loaded"):
        checkpoint.check(str(folder), "dino")


# --- files of weights -------------------------------------------------------------------------------------------
def test_a_lost_shard_is_named(copy):
    file = copy("blip2") / "model.safetensors"
    shard(file)[1].unlink()
    with pytest.raises(FileNotFoundError, match="lacks model-00002-of-00002.safetensors, one of the 2 files that its"):
        checkpoint.check(str(file.parent), "captioner")


def test_a_half_written_shard_is_named(copy):
    file = copy("stable-diffusion") / "unet" / "diffusion_pytorch_model.safetensors"
    second = shard(file)[1]
    second.write_bytes(second.read_bytes()[:-1])
    with pytest.raises(ValueError, match="diffusion_pytorch_model-00002-of-00002.safetensors is damaged"):
        checkpoint.check(str(file.parents[1]), "generator")


@pytest.mark.parametrize(
    "index", ["{}", '{"weight_map": {"a": "../elsewhere.safetensors"}}', '{"weight_map": {"a": 1}}']
)
def test_an_index_that_is_none_is_refused(copy, index):
    file = copy("dino") / "model.safetensors"
    shard(file)
    file.with_name("model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match="model.safetensors.index.json is no index of files beside it"):
        checkpoint.check(str(file.parent), "dino")


def test_shards_without_their_index_are_refused(copy):
    file = copy("dino") / "model.safetensors"
    shard(file)
    file.with_name("model.safetensors.index.json").unlink()
    with pytest.raises(FileNotFoundError, match="or the index of their shards .there is model-00001-of-00002"):
        checkpoint.check(str(file.parent), "dino")


def test_weights_of_another_name_are_refused(copy):
    file = copy("dino") / "model.safetensors"
    file.rename(file.with_name("weights.safetensors"))
    with pytest.raises(FileNotFoundError, match="lacks its weights model.safetensors .*there is weights.safetensors"):
        checkpoint.check(str(file.parent), "dino")


def test_half_precision_files_are_taken_where_they_lie_alone(copy):
    folder = copy("stable-diffusion")
    assert checkpoint.variant(str(folder)) is None
    fp16(folder, alone=False)
    assert checkpoint.variant(str(folder)) is None
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    assert checkpoint.variant(str(folder)) == "fp16"
    assert checkpoint.variant(str(folder / "unet")) is None
    assert checkpoint.variant(str(folder / "vae")) == "fp16"
    assert checkpoint.variant("owner/on-the-hub") is None


def test_the_captioner_alone_is_of_the_profiles_type():
    half = profile.load("mini", dtype="bfloat16", captioner=str(MINI / "blip-base"))
    model, _ = checkpoint.load(BlipForConditionalGeneration, half, "captioner")
    assert model.dtype == torch.bfloat16
    for judge in (similarity.load_dino(half).model, similarity.load_clip(half).model):
        assert judge.dtype == torch.float32


def test_big_pictures_are_embedded_a_few_at_a_time():
    assert similarity.load_dino(profile.load("mini")).batch_size == similarity.EMBED_BATCH == 128
    assert similarity.load_dino(profile.load("mini", dino_size=384)).batch_size == 128 * 224**2 // 384**2 == 43


def shrink_vocabulary(folder, size, rows):
    """Cut an embedding table of `rows` rows to `size`, configuration and weights alike."""
    config = json.loads((folder / "config.json").read_text())
    (config.get("text_config") or config)["vocab_size"] = size
    (folder / "config.json").write_text(json.dumps(config))
    file = folder / "model.safetensors"
    cut = {name: w[:size].clone() if w.shape[:1] == (rows,) else w for name, w in load_file(file).items()}
    save_file(cut, file, metadata={"format": "pt"})


def test_a_captioner_of_another_vocabulary_is_refused(copy):
    folder = copy("blip-base")
    shrink_vocabulary(folder, 30522, 30524)  # BERT's own, without [DEC] and [ENC]
    with pytest.raises(ValueError, match="mixes two vocabularies: its tokenizer has 30,524 tokens"):
        Captioner.load(profile.load("mini", captioner=str(folder)))


def test_a_generator_of_another_vocabulary_is_refused(copy):
    folder = copy("stable-diffusion")
    shrink_vocabulary(folder / "text_encoder", 40000, 49408)
    with pytest.raises(ValueError, match="its tokenizer has 49,408 tokens and its model embeds 40,000"):
        Generator.load(profile.load("mini", generator=str(folder)))


def test_a_judge_of_another_vocabulary_is_refused(copy, tmp_path):
    folder = copy("clip")
    shrink_vocabulary(folder, 40000, 49408)
    models = profile.load("mini", clip=str(folder))
    example = Example(0, tmp_path / "x.png", ("a dog",), None)
    with pytest.raises(ValueError, match="mixes two vocabularies"):
        Scorer(models, RunStore(tmp_path / "store"), [example]).score([example], [["a dog"]], ["CLIP-text"])


def test_unknown_profile_and_field():
    with pytest.raises(ValueError, match="Unknown profile 'maxi': choose one of mini, paper"):
        profile.load("maxi")
    with pytest.raises(ValueError, match="Profile has no field caption"):
        profile.load("mini", caption="x")


def test_a_gpu_profile_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="'paper' needs a CUDA GPU and none is visible"):
        profile.load("paper")


def test_an_offline_profile_never_asks_the_hub():
    with pytest.raises(FileNotFoundError, match="No model folder Salesforce/nothing"):
        profile.load("mini").locate("Salesforce/nothing")


def test_a_mirror_stands_in_for_the_hub(tmp_path, monkeypatch):
    (tmp_path / "org" / "model").mkdir(parents=True)
    paper = profile.load("paper", device="cpu", models_root=tmp_path)
    assert paper.locate("org/model") == str(tmp_path / "org" / "model")
    assert paper.locate("org/other") == "org/other"


# --- the paper's layout, tiny --------------------------------------------------------------------------------
def test_a_published_blip_layout_captions(tmp_path):
    """Files as the published BLIP has them: preprocessor_config.json and vocab.txt, 384 px, CLIP's mean and std."""
    torch.manual_seed(0)
    vision = dict(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, image_size=384, patch_size=64
    )
    text = dict(
        vocab_size=30524,
        hidden_size=32,
        encoder_hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
    )
    BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision)).save_pretrained(tmp_path)
    preprocessor = {
        "image_processor_type": "BlipImageProcessor",
        "processor_class": "BlipProcessor",
        "do_resize": True,
        "size": {"height": 384, "width": 384},
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    words = sorted(architectures.bert_tokenizer().get_vocab().items(), key=lambda pair: pair[1])
    (tmp_path / "vocab.txt").write_text("\n".join(word for word, _ in words[:30522]))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True})
    )
    captioner = Captioner.load(profile.load("mini", captioner=str(tmp_path)))
    rows = captioner.sample([Image.new("RGB", (500, 375), "red")], [[(0, 0), (0, 1)]])
    assert len(rows) == 1 and len(rows[0]) == 2


def test_a_published_stable_diffusion_layout_draws(tmp_path):
    """Four latent channels, 77 tokens, PNDM and a safety checker entry, as in the published v1-4."""
    torch.manual_seed(0)
    tokenizer = architectures.clip_tokenizer()
    tokenizer.model_max_length = 77
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
            max_position_embeddings=77,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=4,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        cross_attention_dim=32,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(8,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=32,
    )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=PNDMScheduler(skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(tmp_path)
    models = profile.load("mini", generator=str(tmp_path), image_size=32, num_inference_steps=4)
    generator = Generator.load(models)
    assert type(generator.pipeline.scheduler).__name__ == "DDPMScheduler"  # the paper's, whatever the checkpoint brings
    images = generator.draw(["a cat"], [0])
    assert images.shape == (1, 32, 32, 3) and images.dtype == np.uint8

    # v1-4 was published before diffusers named the parts of its autoencoder's attention as it does today.
    old = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
    before = set(load_file(tmp_path / "vae" / "diffusion_pytorch_model.safetensors"))
    rewrite(
        tmp_path / "vae" / "diffusion_pytorch_model.safetensors",
        lambda name: next((name.replace(new, was) for new, was in old.items() if new in name), name),
    )
    after = set(load_file(tmp_path / "vae" / "diffusion_pytorch_model.safetensors"))
    assert sum(name.endswith("proj_attn.weight") for name in after - before) == 2
    np.testing.assert_array_equal(Generator.load(models).draw(["a cat"], [0]), images)
