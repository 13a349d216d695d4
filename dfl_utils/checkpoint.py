"""Opening of checkpoint folders: whole, safetensors only, of the vocabulary that the code expects."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.utils import logging as transformers_logging

from dfl_utils import provenance

transformers_logging.disable_progress_bar()  # one bar a file says nothing in a chapter


def check(folder: str, role: str) -> None:
    """Refuse a checkpoint folder that lacks a file or holds a damaged one, then note its use for the stamp.

    A hub id (a name that is no local folder) is left to the library that downloads it.

    Args:
        folder: checkpoint folder in the Hugging Face layout (a pipeline's has one subfolder a component).
        role: the model's part in the run, such as `generator`; it names the checkpoint in the stamp.

    Raises:
        FileNotFoundError: no configuration, or no weights beside one.
        ValueError: broken JSON, truncated weights, or weights in pickle format only.
    """
    root = Path(folder)
    if root.is_dir():
        if not any((root / name).exists() for name in ("config.json", "model_index.json")):
            raise FileNotFoundError(f"{root} has no config.json: it is no checkpoint; {_mend(root)}.")
        for part in _components(root):
            _check_component(part)
    provenance.register(role, folder)


def _mend(root: Path) -> str:
    return f"restore it by `git checkout -- {root.name}`, download it again, or rebuild ours by `make mini`"


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); {_mend(path)}.") from error


def _components(root: Path) -> list[Path]:
    index = root / "model_index.json"
    if not index.exists():
        return [root]
    names = [name for name, value in _read_json(index).items() if isinstance(value, list) and value[0]]
    parts = []
    for name in names:
        part = root / name
        if not part.is_dir():
            raise FileNotFoundError(f"{root} lacks the folder {name} that its model_index.json names; {_mend(root)}.")
        if (part / "config.json").exists() or name in ("unet", "vae", "text_encoder"):
            parts.append(part)
    return parts


def _check_component(part: Path) -> None:
    if not (part / "config.json").exists():
        raise FileNotFoundError(f"{part} lacks config.json; {_mend(part)}.")
    _read_json(part / "config.json")
    weights = sorted(part.glob("*.safetensors"))
    if not weights:
        raise FileNotFoundError(f"{part} lacks its *.safetensors weights (pickles are not loaded); {_mend(part)}.")
    for file in weights:
        try:
            with safe_open(file, "pt") as tensors:
                tensors.keys()
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged or half-written ({error}); {_mend(file)}.") from error


def check_vocabulary(folder: str, tokenizer_size: int, embedding_size: int) -> None:
    """ValueError where a tokenizer knows more tokens than the model has embeddings for."""
    if tokenizer_size > embedding_size:
        raise ValueError(
            f"{folder} mixes two vocabularies: its tokenizer has {tokenizer_size:,} tokens and its model embeds "
            f"{embedding_size:,}; take model and tokenizer from one checkpoint."
        )
