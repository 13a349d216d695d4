"""Opening of checkpoints: safetensors only, of one vocabulary; each noted for the stamp of the results."""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from dfl_utils.store import provenance
from dfl_utils.world.annotations import read_json
from dfl_utils.world.profile import Profile

transformers_logging.disable_progress_bar()  # one bar a file says nothing in a chapter

_log = logging.getLogger(__name__)

SPARE_ROWS = 64  # OPT's table is padded to a multiple of 64; BLIP was published with two unnamed tokens
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
KINDS = {
    "clip": "clip",
    "dino": "vit",
    "efficientnet": "timm_wrapper",
    "probe": "ForImageClassification",
    "tiny_decoder": "AutoencoderTiny",
}
SHARD = r"(-\d+-of-\d+)?"
WEIGHTS = re.compile(rf"(model|diffusion_pytorch_model){SHARD}(\.fp16)?{SHARD}\.safetensors")


def source(profile: Profile, model: str) -> tuple[str, dict[str, Any]]:
    """Folder or hub id of a profile's model, and what `from_pretrained` is told of where it may look.

    ValueError: a folder whose weights are quantised.
    """
    folder = profile.provide(model)
    _refuse_quantised(Path(folder))
    return folder, {"revision": profile.revision(model), "local_files_only": profile.offline}


def _refuse_quantised(folder: Path) -> None:
    for file in (*folder.glob("config.json"), *folder.glob("*/config.json")):
        config = {}
        with suppress(ValueError, OSError):  # a broken one is said when it is opened
            config = read_json(file)
        if quantised := config.get("quantization_config"):
            how = quantised.get("quant_method", "by another package")
            raise ValueError(
                f"The weights of {file.parent} are quantised ({how}), which neither runs on every machine nor moves "
                "between devices: give the checkpoint that it was made of."
            )


@contextmanager
def opening(folder: str, revision: str | None = None, role: str | None = None) -> Iterator[None]:
    """Say in one sentence what is wrong with a checkpoint's files; note its use for the stamp.

    Args:
        folder: in the Hugging Face layout, or a hub id of which `revision` is the commit.
        role: the model's part in the run, such as `generator`; None where only its configuration is looked at.

    Raises:
        FileNotFoundError: weights or another file cannot be had; weights that are pickles count as none.
        ValueError: weights that are damaged, or do not fit their configuration.
    """
    try:
        if role:
            provenance.register(role, folder, revision=revision)
        yield
    except SafetensorError as error:
        raise ValueError(
            f"The weights of {folder} are damaged or half-written ({error}); {provenance.mend(folder)}."
        ) from error
    except OSError as error:
        raise FileNotFoundError(
            f"{folder} lacks a file{f' at revision {revision}' if revision else ''}, or has no *.safetensors weights "
            f"(pickles are not loaded): {_first_line(error)}; {provenance.mend(folder)}."
        ) from error
    except RuntimeError as error:  # sizes of configuration and weights differ
        raise ValueError(
            f"The weights of {folder} do not fit its config.json ({_first_line(error)}); {provenance.mend(folder)}."
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(". ")


def variant(folder: str) -> str | None:
    """The `variant` that loads a local checkpoint: `fp16` where a part has its weights under such names alone."""
    parts: dict[Path, set] = {}
    for file in Path(folder).rglob("*.safetensors"):
        if name := WEIGHTS.fullmatch(file.name):
            parts.setdefault(file.parent, set()).add(name[3])
    return "fp16" if {".fp16"} in parts.values() else None


def load(model_class: type[PreTrainedModel], profile: Profile, role: str, **options: Any):
    """A frozen model of transformers on the profile's device, and the folder or hub id that it came from.

    The captioner is of the profile's `dtype`; judges and the probe are float32. FileNotFoundError, ValueError: as
    `opening` and `read`.
    """
    folder, place = source(profile, getattr(profile, role))
    if role in KINDS:
        check_kind(folder, role, KINDS[role], **place)
    dtype = inference_dtype(profile) if role == "captioner" else torch.float32
    return read(model_class, folder, role, dtype=dtype, **place, **options).to(profile.device), folder


def read(model_class: type[PreTrainedModel], folder: str, role: str, **options: Any) -> PreTrainedModel:
    """A frozen model of transformers from a folder or hub id; ValueError where its weights lack a tensor."""
    options |= {"variant": variant(folder), "use_safetensors": True, "output_loading_info": True}
    with opening(folder, options.get("revision"), role):
        model, report = model_class.from_pretrained(folder, **options)
    if report["missing_keys"]:
        kind, named = model_class.__name__, model.config.architectures or [model_class.__name__]
        other = f"its config.json names a {named[0]}, so give a checkpoint of a {kind}"
        mend = provenance.mend(folder) if kind in named else other
        raise ValueError(f"The weights of {folder} lack {sorted(report['missing_keys'])[0]}; {mend}.")
    if unused := sorted(name for name in report["unexpected_keys"] if not name.endswith("position_ids")):
        kind = model_class.__name__
        _log.warning("%s of the weights of %s are unused by a %s, such as %s", len(unused), folder, kind, unused[0])
    return model.eval().requires_grad_(False)


def check_kind(folder: str, role: str, wanted: str, **place: Any) -> None:
    """ValueError where a checkpoint's configuration names another kind of model than a `wanted` one.

    That is its `model_type`; of a model with a task of its own the end of its class's name, such as
    `ForImageClassification`; of diffusers its class.
    """
    with opening(folder, place.get("revision")):
        config, _ = PreTrainedConfig.get_config_dict(folder, **place)
    names = [config.get("model_type") or "", config.get("_class_name") or "", *(config.get("architectures") or [])]
    if wanted not in names and not (wanted.startswith("For") and any(name.endswith(wanted) for name in names)):
        kind = " ".join(filter(None, names)) or "nameless model"
        raise ValueError(f"{folder} is a {kind}, and no {wanted}, which the {role} is to be: give another folder.")


def check_vocabulary(folder: str, tokenizer_size: int, embedding_size: int) -> None:
    """ValueError where a tokenizer knows more tokens than the model has embeddings for, or far fewer."""
    if not embedding_size - SPARE_ROWS < tokenizer_size <= embedding_size:
        raise ValueError(
            f"{folder} mixes two vocabularies or lacks its tokenizer: that has {tokenizer_size:,} tokens and the model "
            f"embeds {embedding_size:,}; take model and tokenizer from one checkpoint."
        )


def inference_dtype(profile: Profile) -> torch.dtype:
    """The profile's `dtype`, which captioner and generator infer in; judges, probe and training are float32.

    ValueError: an unknown name, or float16 on a CPU, which lacks some of its arithmetic.
    """
    if profile.dtype not in DTYPES:
        raise ValueError(f"dtype is {profile.dtype!r}: choose one of {', '.join(DTYPES)}.")
    if profile.dtype == "float16" and profile.device.startswith("cpu"):
        raise ValueError("dtype is float16, which is for GPUs: set dtype='float32' with device='cpu'.")
    return DTYPES[profile.dtype]


def require_finite(values: np.ndarray, what: str, model: str) -> np.ndarray:
    """The values; ValueError where a broken model or an overflow in half precision made NaN or infinity."""
    if not np.isfinite(values).all():
        raise not_finite(what, model)
    return values


def not_finite(what: str, model: str) -> ValueError:
    """What is said of NaN and infinity."""
    return ValueError(
        f"{what} by {model} holds NaN or infinity: take dtype float32 or bfloat16, or another checkpoint (of a "
        "pipeline often another VAE)."
    )


# --- Tokenizers and processors, read once for all checkpoints that hold the same files, as finetuned ones do: so that
# what `training.vocabulary` remembers of a tokenizer holds for all. Nobody changes a shared one.

# What decides them beside weights: vocabularies, merges, settings, templates, and the configuration that names a class.
FILES = ("*.json", "*.txt", "*.jinja", "*.model")
PIECES = ("spiece.model", "tokenizer.model", "sentencepiece.bpe.model")  # of T5, Llama, XLM-R
Read = TypeVar("Read")
_known: dict[tuple[str, str], object] = {}


def shared(what: str, folder: str | Path, make: Callable[[], Read]) -> Read:
    """`make()`, or what it gave before of this name for a folder with the same files of settings, also in subfolders.

    ValueError: the folder's tokenizer is of a form that only a package reads which is not installed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return make()
    pieces = next((name for name in PIECES if (folder / name).is_file()), None)
    if pieces and not (folder / "tokenizer.json").is_file() and find_spec("sentencepiece") is None:
        raise ValueError(
            f"The tokenizer in {folder} lies there as {pieces}, which the package sentencepiece reads, and that is not "
            "installed: install it by pip, or save the tokenizer again where it is, which adds a tokenizer.json."
        )
    files = sorted((path.relative_to(folder).as_posix(), path) for name in FILES for path in folder.rglob(name))
    key = what, repr([(name, provenance.file_hash(path)) for name, path in files])
    if key not in _known:
        _known[key] = make()
    return _known[key]


def load_tokenizer(folder: str, subfolder: str = "", **options) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint, or of a pipeline's subfolder; `options` as for transformers' `from_pretrained`."""
    options |= {"subfolder": subfolder}

    def make() -> PreTrainedTokenizerBase:
        try:
            return AutoTokenizer.from_pretrained(folder, **options)
        except (ValueError, OSError) as error:  # it speaks of packages, and of other folders' names
            where = Path(folder, subfolder)
            raise ValueError(f"{where} holds no tokenizer that is whole; {provenance.mend(folder)}.") from error

    return shared("tokenizer", Path(folder, subfolder), make)


def too_long(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[str]:
    """The texts of which a model reads the beginning alone: they have more tokens than its tokenizer says it reads."""
    ids = tokenizer(list(texts), verbose=False).input_ids
    # The library's own warning, when a pipeline then reads such a text, speaks of errors that do not come.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return [text for text, row in zip(texts, ids, strict=True) if len(row) > tokenizer.model_max_length]


def of_pipeline(folder: str) -> dict[str, PreTrainedTokenizerBase]:
    """The tokenizers that a pipeline's folder names, for its `from_pretrained`; none of a hub id."""
    index = Path(folder) / "model_index.json"
    named = read_json(index) if index.is_file() else {}
    names = [name for name, value in named.items() if name.startswith("tokenizer") and None not in value]
    return {name: load_tokenizer(folder, name, local_files_only=True) for name in names}


def snapshot(model: str, revision: str | None = None) -> str:
    """Where a model lies: its folder, or of a hub id what the hub's cache holds, else the id; opens no connection."""
    if Path(model).is_dir():
        return model
    try:
        return snapshot_download(model, revision=revision, local_files_only=True)
    except (LocalEntryNotFoundError, HFValidationError):
        return model
