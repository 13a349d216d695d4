"""Copies of the embedded checkpoints, rewritten into the layouts in which real repositories hold theirs."""

import json
import os
import pickle
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

# What a configuration written by transformers 4.26 repeats in every part: nothing of it concerns the model.
NOISE = {
    "_name_or_path": "",
    "architectures": None,
    "bad_words_ids": None,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "max_length": 20,
    "num_beams": 1,
    "pruned_heads": {},
    "torch_dtype": None,
    "transformers_version": "4.26.0.dev0",
}
OLD_CLIP = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}  # other ids than the tokenizer's


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def change(path: Path, **values: object) -> None:
    """Other values in a JSON file; None takes one out."""
    write(path, {name: value for name, value in (read(path) | values).items() if value is not None})


# --- names of tensors, configurations -----------------------------------------------------------------------
def rewrite(file: Path, name=lambda name: name, extra: dict | None = None) -> None:
    """Rename a file's tensors and add some."""
    tensors = {name(key): value for key, value in load_file(file).items()}
    save_file(tensors | (extra or {}), file, metadata={"format": "pt"})


def positions(count: int) -> torch.Tensor:
    """The buffer that old checkpoints hold: whole numbers, no weights."""
    return torch.arange(count)[None]


def old_config(folder: Path, **changes: object) -> None:
    """A configuration as transformers 4.26 wrote it, with single values changed."""
    config = read(folder / "config.json")
    for part in ("text_config", "vision_config"):
        if part in config:
            config[part] = NOISE | config[part]
    config.pop("dtype")
    write(folder / "config.json", config | {"torch_dtype": "float32", "_commit_hash": None} | changes)
    (folder / "generation_config.json").unlink(missing_ok=True)


# --- processors and tokenizers --------------------------------------------------------------------------------
def old_processor(folder: Path, kind: str) -> None:
    """preprocessor_config.json in place of processor_config.json."""
    source = folder / "processor_config.json"
    settings = read(source)["image_processor"]
    source.unlink()
    kept = {"do_normalize", "do_resize", "image_mean", "image_std", "size", "do_center_crop", "crop_size", "resample"}
    old = {key: value for key, value in settings.items() if key in kept}
    write(folder / "preprocessor_config.json", old | {"image_processor_type": kind})


def word_pieces(folder: Path) -> None:
    """BLIP's published tokenizer: 30,522 tokens in vocab.txt, and no [DEC]."""
    tokenizer = read(folder / "tokenizer.json")
    words = sorted(tokenizer["model"]["vocab"].items(), key=lambda pair: pair[1])[:30522]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word, _ in words), encoding="utf-8")
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("cls", "mask", "pad", "sep", "unk")}
    write(folder / "special_tokens_map.json", names)
    kind = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512, "strip_accents": None}
    write(folder / "tokenizer_config.json", names | kind | {"processor_class": "BlipProcessor", "never_split": None})


def byte_pairs(folder: Path, kind: str, names: dict[str, str], length: int, added: tuple[str, ...] = ()) -> None:
    """vocab.json and merges.txt in place of tokenizer.json, tokens that came later in added_tokens.json too."""
    model = read(folder / "tokenizer.json")["model"]
    (folder / "tokenizer.json").unlink()
    write(folder / "vocab.json", model["vocab"])
    pairs = "\n".join(pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{pairs}\n", encoding="utf-8")
    if added:
        write(folder / "added_tokens.json", {token: model["vocab"][token] for token in added})
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    write(folder / "special_tokens_map.json", {role: {"content": name} | flags for role, name in names.items()})
    tokens = {role: {"__type": "AddedToken", "content": name} | flags for role, name in names.items()}
    settings = {"tokenizer_class": kind, "model_max_length": length, "errors": "replace", "add_prefix_space": False}
    write(folder / "tokenizer_config.json", tokens | settings | {"special_tokens_map_file": "special_tokens_map.json"})


CLIP_NAMES = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
}
OPT_NAMES = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}


# --- files of weights -------------------------------------------------------------------------------------------
def weights(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def shard(file: Path, extra: dict | None = None) -> list[Path]:
    """Two shards and their index in place of one file."""
    tensors, stem = load_file(file) | (extra or {}), file.name.removesuffix(".safetensors")
    file.unlink()
    names = [file.with_name(f"{stem}-{k:05}-of-00002.safetensors") for k in (1, 2)]
    keys = sorted(tensors)
    halves = keys[: len(keys) // 2], keys[len(keys) // 2 :]
    for name, half in zip(names, halves, strict=True):
        save_file({key: tensors[key] for key in half}, name, metadata={"format": "pt"})
    places = {key: name.name for name, half in zip(names, halves, strict=True) for key in half}
    size = sum(tensor.nbytes for tensor in tensors.values())
    write(file.with_name(f"{stem}.safetensors.index.json"), {"metadata": {"total_size": size}, "weight_map": places})
    return names


def fp16(folder: Path, *, alone: bool) -> None:
    """Each file of weights under the variant's name too, or under it alone."""
    for file in weights(folder):
        other = file.with_name(file.name.replace(".safetensors", ".fp16.safetensors"))
        file.rename(other) if alone else shutil.copyfile(file, other)


class Trap:
    """A pickle of it makes the file `sprung` when it is opened."""

    def __init__(self, sprung: Path):
        self.sprung = sprung

    def __reduce__(self):
        return Path.touch, (self.sprung,)


def traps(folder: Path, sprung: Path) -> int:
    """Pickles beside every file of weights, as published repositories hold them; how many."""
    bait, count = pickle.dumps(Trap(sprung)), 0
    for part in {file.parent for file in weights(folder)} | {folder}:
        names = ("pytorch_model.bin", "diffusion_pytorch_model.bin", "pytorch_model.fp16.bin", "sd-v1-4.ckpt")
        for name in names:
            (part / name).write_bytes(bait)
            count += 1
        for name in ("tf_model.h5", "flax_model.msgpack", "README.md", ".gitattributes"):
            (part / name).write_bytes(b"of another library")
    return count


def pickled(folder: Path) -> Path:
    """One honest pickle of tensors in place of the safetensors."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


# --- pipelines and the hub's cache --------------------------------------------------------------------------------
def safety_checker(folder: Path, *, present: bool) -> None:
    """An old model_index.json that names a safety checker and its extractor, their folders there or left out."""
    index = read(folder / "model_index.json")
    for name in ("image_encoder", "requires_safety_checker"):
        index.pop(name, None)
    index |= {
        "_diffusers_version": "0.2.2",
        "feature_extractor": ["transformers", "CLIPFeatureExtractor"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "scheduler": ["diffusers", "PNDMScheduler"],
    }
    write(folder / "model_index.json", index)
    if present:
        for name in ("feature_extractor", "safety_checker"):
            (folder / name).mkdir()
        write(folder / "feature_extractor" / "preprocessor_config.json", {"size": 224, "crop_size": 224})
        write(folder / "safety_checker" / "config.json", {"model_type": "clip"})
        (folder / "safety_checker" / "model.safetensors").write_bytes(b"never opened")


def old_scheduler(folder: Path, **settings: object) -> None:
    """PNDM's configuration as early files have it: neither `clip_sample` nor `prediction_type`."""
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "trained_betas": None}
    content = {"_class_name": "PNDMScheduler", "num_train_timesteps": 1000, "skip_prk_steps": True} | betas
    write(folder / "scheduler" / "scheduler_config.json", content | settings)


def hub_cache(cache: Path, model: str, folder: Path, revision: str, *, main: bool = False) -> Path:
    """The snapshot that a download leaves: links to blobs; `main`: the revision is the repository's current one."""
    repository = cache / f"models--{model.replace('/', '--')}"
    snapshot = repository / "snapshots" / revision
    for file in (path for path in folder.rglob("*") if path.is_file()):
        link = snapshot / file.relative_to(folder)
        blob = repository / "blobs" / f"{revision[:8]}{len(list(repository.glob('blobs/*')))}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    if main:
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(revision)
    return snapshot
