"""Weights that were published as pickles only, written anew as safetensors.

BLIP ViT-B is such a repository at the commit that people hold. A pickle may run code when it is opened; PyTorch's
restricted unpickler builds tensors and nothing else, and what it refuses is refused here.
"""

import json
import pickle
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from dfl_utils.models import checkpoint

STEMS = {"pytorch_model": "model", "diffusion_pytorch_model": "diffusion_pytorch_model"}  # of a pickle -> of ours
BESIDE = ("*.json", "*.txt")  # configurations and vocabularies


def convert(source: str | Path, target: str | Path) -> list[Path]:
    """Copy a model's folder with its weights as safetensors, under the same names and of the same types.

    Tensors that share memory, such as tied embeddings, are written one by one.

    Args:
        source: folder of one model of transformers or diffusers, its weights in one pickle or in shards with an index.
        target: folder to be made; it appears when it is whole.

    Returns:
        The files of weights.

    Raises:
        FileNotFoundError: no such folder or pickles, or a shard missing.
        FileExistsError: `target` is there.
        ValueError: a pickle that holds more than named tensors, or a damaged one.
    """
    source, target = Path(source), Path(target)
    if not source.is_dir():
        raise FileNotFoundError(f"There is no folder {source}: give that of one model.")
    if target.exists():
        raise FileExistsError(f"{target} is there already: give a folder that is not.")
    stem, shards = _shards(source)
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for file in (file for pattern in BESIDE for file in source.glob(pattern)):
        if not file.name.endswith(".bin.index.json"):
            shutil.copyfile(file, partial / file.name)  # the file itself, where the hub's cache has a link
    places = {}
    for shard in shards:
        name = shard.name.replace(stem, STEMS[stem]).removesuffix(".bin") + ".safetensors"
        tensors = _tensors(shard)
        save_file(tensors, partial / name, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, name)
    if len(shards) > 1:
        index = {"metadata": {}, "weight_map": dict(sorted(places.items()))}
        (partial / f"{STEMS[stem]}.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    partial.replace(target)
    return sorted(target.glob("*.safetensors"))


def _shards(source: Path) -> tuple[str, list[Path]]:
    for stem in STEMS:
        if (source / f"{stem}.bin").is_file():
            return stem, [source / f"{stem}.bin"]
        if (source / f"{stem}.bin.index.json").is_file():
            return stem, checkpoint.shards(source / f"{stem}.bin.index.json")
    raise FileNotFoundError(f"{source} has no {' or '.join(f'{stem}.bin' for stem in STEMS)} to be written anew.")


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(". ")
        raise ValueError(
            f"{file} is damaged, or holds more than tensors ({reason}); download it again from a source you trust."
        ) from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"{file} holds no plain dictionary of tensors: give the weights of one model.")
    return _apart(found)


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, none in the memory of another."""
    seen, apart = set(), {}
    for name, value in tensors.items():
        value = value.contiguous()
        memory = value.untyped_storage().data_ptr()
        apart[name] = value.clone() if memory in seen else value
        seen.add(memory)
    return apart
