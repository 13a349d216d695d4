"""Opening of checkpoint folders: whole, safetensors only, of one vocabulary."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from dfl_utils.models import layout
from dfl_utils.store import provenance
from dfl_utils.world.annotations import read_json

# of this module's interface
from dfl_utils.world.profile import Profile

transformers_logging.disable_progress_bar()  # one bar a file says nothing in a chapter


SPARE_ROWS = 64  # OPT's table is padded to a multiple of 64; BLIP was published with two unnamed tokens
STEMS = ("model", "diffusion_pytorch_model")  # of the weights' names, in transformers and in diffusers
VARIANTS = (None, "fp16")  # of the weights' names; the second is taken where it lies alone
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")  # weights that run code when they are opened


class PickledWeights(FileNotFoundError):
    """A checkpoint whose weights are pickles only."""


def check(folder: str, role: str, *needs: tuple[tuple[str, ...], ...], revision: str | None = None) -> None:
    """Refuse a checkpoint folder that lacks a file or holds a damaged one, then note its use for the stamp.

    What the hub's cache lacks of a hub id (a name that is no local folder) is left to the library that downloads it;
    what it holds is checked.

    Args:
        folder: checkpoint folder in the Hugging Face layout (a pipeline's has one subfolder a component), or a hub id.
        role: the model's part in the run, such as `generator`; it names the checkpoint in the stamp.
        needs: what must lie beside the weights: some of `layout.TOKENIZER`, `layout.PROCESSOR`.
        revision: commit of a hub id.

    Raises:
        FileNotFoundError: no configuration, weights, shard of the weights, tokenizer, processor or scheduler;
            `PickledWeights` where the weights are pickles only.
        ValueError: broken JSON, truncated weights.
    """
    if Path(folder).is_dir():
        _check(Path(folder), needs)
        provenance.register(role, folder)
        return
    if (cached := snapshot(folder, revision)) is not None:
        _check_cached(cached, needs)
    provenance.register(role, folder, revision=revision)


def snapshot(model: str, revision: str | None = None) -> Path | None:
    """Where a model lies: its folder, or of a hub id what the hub's cache holds, or None; opens no connection."""
    if Path(model).is_dir():
        return Path(model)
    try:
        return Path(snapshot_download(model, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def variant(folder: str) -> str | None:
    """The `variant` that loads a local checkpoint: `fp16` where a part has its weights under such names alone.

    None for a hub id, whose files are not looked at.
    """
    root = Path(folder)
    pipeline = (root / "model_index.json").exists()
    parts = sorted(path for path in root.iterdir() if path.name not in layout.UNUSED) if pipeline else [root]
    return next((found for part in parts if (found := _weights(part)[0]) is not None), None)


def load(model_class: type[PreTrainedModel], profile: Profile, role: str, *needs, **options: Any):
    """A frozen model of transformers and the folder or hub id it came from.

    The captioner is of the profile's `dtype`; judges and the probe are fp32 in every profile. The checkpoint's own
    type is never kept: bf16 is several times slower on a CPU.

    Raises:
        FileNotFoundError, ValueError: as `check`; weights that lack a tensor, or do not fit their configuration; a hub
            id that cannot be had.
    """
    folder, revision = profile.provide(getattr(profile, role)), profile.revision(getattr(profile, role))
    check(folder, role, *needs, revision=revision)
    try:
        model, report = model_class.from_pretrained(
            folder,
            revision=revision,
            variant=variant(folder),
            dtype=inference_dtype(profile) if role == "captioner" else torch.float32,
            local_files_only=profile.offline,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    except OSError as error:
        if Path(folder).is_dir():
            raise
        raise FileNotFoundError(_unavailable(folder, revision, error)) from error
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
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("no object of names and values")
        return content
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); {_mend(path)}.") from error


def _require_one(folder: Path, sets: tuple[tuple[str, ...], ...]) -> None:
    if not any(all((folder / name).is_file() for name in names) for names in sets):
        raise FileNotFoundError(f"{folder} lacks {' or '.join(' and '.join(s) for s in sets)}; {_mend(folder)}.")


def _check_pipeline(root: Path) -> None:
    index = _read_json(root / "model_index.json")
    for name, value in index.items():
        if not isinstance(value, list) or not value[0] or name in layout.UNUSED:
            continue
        part = root / name
        if not part.is_dir():
            raise FileNotFoundError(f"{root} lacks the folder {name} that its model_index.json names; {_mend(root)}.")
        if name.startswith("tokenizer"):
            _require_one(part, layout.TOKENIZER)
        elif name == "scheduler":
            _require_one(part, layout.SCHEDULER)
        else:
            _check_model(part)


def _check(root: Path, needs: tuple[tuple[tuple[str, ...], ...], ...]) -> None:
    if (root / "model_index.json").exists():
        _check_pipeline(root)
        return
    _check_model(root)
    for sets in needs:
        _require_one(root, sets)


def _check_cached(cached: Path, needs: tuple[tuple[tuple[str, ...], ...], ...]) -> None:
    """As `_check` of a snapshot, of which a download can still bring what it lacks."""
    try:
        _check(cached, needs)
    except PickledWeights:
        raise
    except FileNotFoundError:
        pass


def _check_model(part: Path) -> None:
    _require_one(part, (("config.json",),))
    _read_json(part / "config.json")
    files = _weights(part)[1]
    if not files:
        raise _no_weights(part)
    for file in files:
        try:
            with safe_open(file, "pt") as tensors:
                tensors.keys()
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged or half-written ({error}); {_mend(file)}.") from error


def _weights(part: Path) -> tuple[str | None, list[Path]]:
    """Variant and files of a model's weights, in the libraries' order of search; no files where there are none."""
    for kind in VARIANTS:
        end = "" if kind is None else f".{kind}"
        for stem in STEMS:
            if (part / f"{stem}{end}.safetensors").is_file():
                return kind, [part / f"{stem}{end}.safetensors"]
            if (index := part / f"{stem}.safetensors.index{end}.json").is_file():
                return kind, shards(index)
    return None, []


def shards(index: Path) -> list[Path]:
    """The files that an index of sharded weights names.

    Raises:
        FileNotFoundError: one of them is missing.
        ValueError: no index, or one that names files elsewhere.
    """
    names = _read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(name == Path(str(name)).name for name in names.values()):
        raise ValueError(f"{index} is no index of files beside it (`weight_map`: tensor -> file); {_mend(index)}.")
    files = [index.parent / name for name in sorted(set(names.values()))]
    if lost := [file.name for file in files if not file.is_file()]:
        raise FileNotFoundError(
            f"{index.parent} lacks {lost[0]}, one of the {len(files)} files that its {index.name} names; "
            f"{_mend(index.parent)}."
        )
    return files


def _no_weights(part: Path) -> FileNotFoundError:
    """What to say where `_weights` finds none."""
    if found := sorted(file.name for file in part.glob("*.safetensors")):
        return FileNotFoundError(
            f"{part} lacks its weights {' or '.join(f'{stem}.safetensors' for stem in STEMS)} or the index of their "
            f"shards (there is {found[0]}); {_mend(part)}."
        )
    if found := sorted(file.name for pattern in PICKLES for file in part.glob(pattern)):
        return PickledWeights(
            f"{part} lacks its *.safetensors weights: {found[0]} is a pickle, and pickles are not loaded; name a "
            "commit or a folder that holds safetensors."
        )
    return FileNotFoundError(f"{part} lacks its *.safetensors weights (pickles are not loaded); {_mend(part)}.")


def _unavailable(model: str, revision: str | None, error: OSError) -> str:
    reason = str(error).strip().splitlines()[0].rstrip(". ")
    return (
        f"{model} cannot be had with *.safetensors weights at revision {revision or 'main'} ({reason}): fetch it by "
        "`dfl fetch`, or give the folder of a copy."
    )


# --- Tokenizers and processors, read once for all checkpoints that hold the same files.
#
# A finetuned model's folder has a copy of its base's tokenizer, and every chapter loads many of them. What is
# remembered of a tokenizer (`alignment.once_a_tokenizer`) then holds for all of them too. Nobody changes a shared one.

# What decides them beside weights: vocabularies, merges, settings, templates, and the configuration that names a class.
FILES = ("*.json", "*.txt", "*.jinja", "*.model")
Read = TypeVar("Read")
_known: dict[tuple[str, str], object] = {}


def shared(what: str, folder: str | Path, read: Callable[[], Read]) -> Read:
    """`read()`, or what it gave before for a folder with the same files of settings; for a hub id always `read()`.

    Args:
        what: tells readers of one folder apart, such as `tokenizer` and `processor`.
        folder: whose files, those of its subfolders left out, decide what `read` gives.
        read: makes it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return read()
    files = sorted((path.name, path) for pattern in FILES for path in folder.glob(pattern))
    key = what, repr([(name, provenance.file_hash(path)) for name, path in files])
    if key not in _known:
        _known[key] = read()
    return _known[key]


def load_tokenizer(folder: str, subfolder: str = "", **options) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint, or of a pipeline's subfolder; `options` as for transformers' `from_pretrained`."""
    found = of_pipeline(folder).get(subfolder)
    if found is not None:
        return found
    options |= {"subfolder": subfolder}
    return shared("tokenizer", Path(folder, subfolder), lambda: AutoTokenizer.from_pretrained(folder, **options))


def of_pipeline(folder: str) -> dict[str, PreTrainedTokenizerBase]:
    """The tokenizers that a pipeline's folder names, for its `from_pretrained`; none of a hub id."""
    index = Path(folder) / "model_index.json"
    named = read_json(index) if index.is_file() else {}
    parts = {name: value for name, value in named.items() if name.startswith("tokenizer") and None not in value}
    return {name: _named(str(Path(folder, name)), *value) for name, value in parts.items()}


def _named(folder: str, library: str, kind: str) -> PreTrainedTokenizerBase:
    read = getattr(importlib.import_module(library), kind).from_pretrained
    return shared(kind, folder, lambda: read(folder, local_files_only=True))


# --- The number type that captioner and generator infer in.

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def inference_dtype(profile: Profile) -> torch.dtype:
    """The profile's `dtype`. Judges, the probe and all training are float32 in every profile.

    Raises:
        ValueError: an unknown name, or float16 on a CPU, which has no fast arithmetic for it and lacks some of it.
    """
    if profile.dtype not in DTYPES:
        raise ValueError(f"dtype is {profile.dtype!r}: choose one of {', '.join(DTYPES)}.")
    if profile.dtype == "float16" and profile.device.startswith("cpu"):
        raise ValueError("dtype is float16, which is for GPUs: set dtype='float32' with device='cpu'.")
    return DTYPES[profile.dtype]
