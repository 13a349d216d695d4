"""What of the published files a machine has, whole or not: read off folders, headers and sizes, with no connection."""

import json
import os
from pathlib import Path

from dfl_utils.build.catalogue import Model
from dfl_utils.build.web_files import File
from dfl_utils.models.layout import PROCESSOR, TOKENIZER, UNUSED
from dfl_utils.world.profile import Profile

WEIGHTLESS = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}
BESIDE = {"blip": (TOKENIZER, PROCESSOR), "blip-2": (TOKENIZER, PROCESSOR), "clip": (TOKENIZER, PROCESSOR),
          "vit": (PROCESSOR,)}  # what lies beside the weights, by model_type  # fmt: skip


def model_folder(profile: Profile, model: Model) -> Path | None:
    """Folder from which an online profile loads a model: its mirror, its snapshot in the hub's cache; or None."""
    found = Path(profile.locate(model.id))
    return found if found.is_dir() else snapshot(model)


def snapshot(model: Model) -> Path | None:
    """A model's folder in the cache of the hub, at the commit that is used; None if it is not there."""
    from huggingface_hub import try_to_load_from_cache  # not for those who only ask for sizes

    for name in ("model_index.json", "config.json"):
        found = try_to_load_from_cache(model.id, name, revision=model.revision)
        if isinstance(found, str):
            return Path(found).parent
    return None


def model_flaw(folder: Path) -> str | None:
    """What a model's folder lacks, in a few words that follow its name; None where it looks whole.

    Configurations are parsed, and the length of each weights' file is compared with its own header: a file that was cut
    off is found in no time, a flipped bit is not (`dfl fetch` checks hashes).
    """
    try:
        index = folder / "model_index.json"
        if not index.is_file():
            return _part_flaw(folder) or _lacking(
                folder, BESIDE.get(_json(folder / "config.json").get("model_type"), ())
            )
        parts = [name for name, value in _json(index).items() if isinstance(value, list) and value[0]]
        flaws = [(name, _component_flaw(folder / name, name)) for name in parts if name not in UNUSED]
        return next((f"{flaw} in its part {name}" for name, flaw in flaws if flaw), None)
    except (ValueError, AttributeError) as error:
        return f"has a broken file ({error})"


def _component_flaw(folder: Path, name: str) -> str | None:
    if not folder.is_dir():
        return "lacks the folder"
    kind = next((config for part, config in WEIGHTLESS.items() if name.startswith(part)), None)
    if kind is None:
        return _part_flaw(folder)
    if not (folder / kind).is_file():
        return f"lacks {kind}"
    _json(folder / kind)
    return _lacking(folder, (TOKENIZER,)) if name.startswith("tokenizer") else None


def _lacking(folder: Path, needs: tuple) -> str | None:
    """The first of the needs that no set of files meets."""
    for sets in needs:
        if not any(all((folder / name).is_file() for name in names) for names in sets):
            return f"lacks {' or '.join(' and '.join(names) for names in sets)}"
    return None


def _part_flaw(folder: Path) -> str | None:
    if not (folder / "config.json").is_file():
        return "lacks config.json"
    _json(folder / "config.json")
    for index in sorted(folder.glob("*.safetensors.index.json")):
        lost = {name for name in _json(index)["weight_map"].values() if not (folder / name).is_file()}
        if lost:
            return f"lacks {min(lost)}"
    weights = [path for path in sorted(folder.glob("*.safetensors")) if ".fp16" not in path.name]
    if not weights:
        pickles = [path.name for path in (*folder.glob("*.bin"), *folder.glob("*.pth"), *folder.glob("*.ckpt"))]
        return f"lacks its safetensors weights{' (pickles are not loaded)' if pickles else ''}"
    return next((f"has a cut-off {path.name}" for path in weights if not _is_whole(path)), None)


def _is_whole(weights: Path) -> bool:
    """Whether a safetensors file is as long as its header says (https://github.com/huggingface/safetensors#format)."""
    size = weights.stat().st_size
    with weights.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= size - 8:
            return False
        header = json.loads(file.read(length))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return size == 8 + length + max(ends, default=0)


def started(profile: Profile, wanted: Model | File) -> int:
    """Bytes that a call of `dfl fetch` left half-done, and the next one goes on with."""
    if isinstance(wanted, Model):
        folder = Path(profile.models_root or profile.data_root) / ".partial"
        parts = [part for partial in folder.glob(f"{wanted.id.replace('/', '--')}-*") for part in partial.rglob("*")]
    else:
        whole = wanted.download(profile)
        parts = [whole, whole.with_name(f"{whole.name}.part")] if wanted.count is None or wanted.members else []
    return sum(part.stat().st_size for part in parts if part.is_file())


def _json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error


def file_flaw(profile: Profile, file: File) -> str | None:
    """What is wrong with a file or folder from the web, in a few words that follow its name; None where it is whole."""
    found = file.found(profile)
    if found is None:
        return "is missing"
    if file.count is not None:
        with os.scandir(found) as entries:
            there = sum(not entry.name.startswith(".") for entry in entries)
        return None if there >= file.count else f"has {there:,} of {file.count:,} images"
    wanted = None if file.members else file.bytes  # that of an archive is not of what it becomes
    size = found.stat().st_size
    return None if size and wanted in (None, size) else f"has {size:,} of {wanted or 0:,} bytes"
