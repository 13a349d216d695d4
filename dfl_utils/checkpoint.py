"""Opening of checkpoint folders: whole, safetensors only, of one vocabulary."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from dfl_utils import provenance
from dfl_utils.profile import Profile

transformers_logging.disable_progress_bar()  # one bar a file says nothing in a chapter

# A part that a loader would replace by an empty or default one if it were lost: any one of these sets will do.
TOKENIZER = (("tokenizer.json",), ("vocab.txt",), ("vocab.json", "merges.txt"))
PROCESSOR = (("processor_config.json",), ("preprocessor_config.json",))
SCHEDULER = (("scheduler_config.json",),)
SPARE_ROWS = 64  # OPT's table is padded to a multiple of 64; BLIP was published with two unnamed tokens
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")  # of a published pipeline; we never load them


def check(folder: str, role: str, *needs: tuple[tuple[str, ...], ...]) -> None:
    """Refuse a checkpoint folder that lacks a file or holds a damaged one, then note its use for the stamp.

    A hub id (a name that is no local folder) is left to the library that downloads it.

    Args:
        folder: checkpoint folder in the Hugging Face layout (a pipeline's has one subfolder a component).
        role: the model's part in the run, such as `generator`; it names the checkpoint in the stamp.
        needs: what must lie beside the weights: some of `TOKENIZER`, `PROCESSOR`.

    Raises:
        FileNotFoundError: no configuration, weights, tokenizer, processor or scheduler.
        ValueError: broken JSON, truncated weights, or weights in pickle format only.
    """
    root = Path(folder)
    if root.is_dir() and (root / "model_index.json").exists():
        _check_pipeline(root)
    elif root.is_dir():
        _check_model(root)
        for sets in needs:
            _require_one(root, sets)
    provenance.register(role, folder)


def load(model_class: type[PreTrainedModel], profile: Profile, role: str, *needs, **options: Any):
    """A frozen fp32 model of transformers and the folder or hub id it came from.

    bf16 is several times slower on a CPU, so the checkpoint's own type is never kept.

    Raises:
        FileNotFoundError, ValueError: as `check`; weights that lack a tensor, or do not fit their configuration.
    """
    folder = profile.locate(getattr(profile, role))
    check(folder, role, *needs)
    try:
        model, report = model_class.from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=profile.offline,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    except RuntimeError as error:  # sizes of configuration and weights differ
        first = str(error).strip().splitlines()[0]
        raise ValueError(f"The weights of {folder} do not fit its config.json ({first}); {_mend(folder)}.") from error
    if report["missing_keys"]:
        raise ValueError(f"The weights of {folder} lack {sorted(report['missing_keys'])[0]}; {_mend(folder)}.")
    return model.to(profile.device).eval().requires_grad_(False), folder


def check_vocabulary(folder: str, tokenizer_size: int, embedding_size: int) -> None:
    """ValueError where a tokenizer knows more tokens than the model has embeddings for, or far fewer."""
    if not embedding_size - SPARE_ROWS < tokenizer_size <= embedding_size:
        raise ValueError(
            f"{folder} mixes two vocabularies: its tokenizer has {tokenizer_size:,} tokens and its model embeds "
            f"{embedding_size:,}; take model and tokenizer from one checkpoint."
        )


def _mend(path: Path | str) -> str:
    path = Path(path).resolve()
    if not path.is_relative_to(provenance.ROOT):
        return "copy or download the checkpoint again"
    place = path.relative_to(provenance.ROOT).as_posix()
    return f"restore it by `git checkout -- {place}` or rebuild it by `make mini`"


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); {_mend(path)}.") from error


def _require_one(folder: Path, sets: tuple[tuple[str, ...], ...]) -> None:
    if not any(all((folder / name).is_file() for name in names) for names in sets):
        raise FileNotFoundError(f"{folder} lacks {' or '.join(' and '.join(s) for s in sets)}; {_mend(folder)}.")


def _check_pipeline(root: Path) -> None:
    index = _read_json(root / "model_index.json")
    for name, value in index.items():
        if not isinstance(value, list) or not value[0] or name in UNUSED:
            continue
        part = root / name
        if not part.is_dir():
            raise FileNotFoundError(f"{root} lacks the folder {name} that its model_index.json names; {_mend(root)}.")
        if name.startswith("tokenizer"):
            _require_one(part, TOKENIZER)
        elif name == "scheduler":
            _require_one(part, SCHEDULER)
        else:
            _check_model(part)


def _check_model(part: Path) -> None:
    _require_one(part, (("config.json",),))
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
