"""One shard of the run store: named arrays and lists of strings in a safetensors file that proves itself whole.

The strings lie as JSON in the file's metadata, with a checksum over all it holds. It is written beside its place under
a name of its writer's own, synced and renamed, so that nothing half-written or garbled is ever taken for whole.
"""

import contextlib
import glob
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

Content = dict[str, np.ndarray | list[str]]


class Broken(ValueError):
    """A shard that is there and not whole."""


def write(path: Path, content: Content, metadata: Mapping[str, str]) -> Content:
    """Store a shard atomically: a kill leaves none or a whole one.

    What killed writers of the same path left is swept away. A writer that was held up so long that another took its
    place is swept, too, and leaves the path to the other: both have the same content.

    Args:
        content: arrays (bool, integer, float up to 64 bits) and lists of str by name.
        metadata: strings to keep with it; `names`, `strings` and `sha256` are taken.

    Returns:
        The content as `read` will give it: own, contiguous arrays.

    Raises:
        ValueError: a content that cannot be stored.
        OSError: the file cannot be written (disk full).
    """
    content = {name: _checked(path, name, value) for name, value in content.items()}
    payload = _pack(content, dict(metadata))
    unfinished = path.with_name(f"{path.stem}.{secrets.token_hex(4)}.partial")
    try:
        for left in path.parent.glob(f"{glob.escape(path.stem)}*.partial"):
            left.unlink(missing_ok=True)
        with unfinished.open("xb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileNotFoundError):  # swept
            unfinished.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        reason = error.strerror or error
        raise OSError(f"{path} cannot be written ({reason}): free some space, or set DFL_STORE.") from error
    return content


def read(path: Path) -> tuple[Content, dict[str, str]]:
    """Content and metadata of a shard. FileNotFoundError: there is none; Broken: it is truncated, garbled or none."""
    with _opened(path) as shard:
        tensors = {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118, no mapping
        return _proved(tensors, shard.metadata() or {})


def cost(path: Path) -> tuple[float, int] | None:
    """Seconds and model calls of a shard's first making, by its header, which may be Broken; None of no shard."""
    try:
        with _opened(path) as shard:
            metadata = shard.metadata() or {}
            return float(metadata.get("seconds", 0)), int(metadata.get("calls", 0))
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator:
    if not path.exists():
        raise FileNotFoundError(path)
    try:
        with safe_open(path, "np") as shard:
            yield shard
    except (SafetensorError, OSError, ValueError) as error:
        raise Broken(str(error)) from error


def loads(data: bytes) -> tuple[Content, dict[str, str]]:
    """As `read`, of a shard's bytes.

    Raises:
        Broken: they are no whole shard.
    """
    try:
        return _proved(safetensors.numpy.load(data), header(data))
    except (SafetensorError, ValueError, KeyError) as error:
        raise Broken(str(error)) from error


def header(data: bytes) -> dict[str, str]:
    """What lies beside a shard's content, of its bytes; Broken where they are no shard."""
    try:
        size = int.from_bytes(data[:8], "little")
        return json.loads(bytes(data[8 : 8 + size])).get("__metadata__", {})
    except (ValueError, AttributeError) as error:
        raise Broken(str(error)) from error


def _proved(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> tuple[Content, dict[str, str]]:
    if metadata.pop("sha256", None) != _checksum(tensors, metadata):
        raise Broken("its checksum does not fit")
    content = tensors | json.loads(metadata.pop("strings"))
    return {name: content[name] for name in json.loads(metadata.pop("names"))}, metadata


def _checked(path: Path, name: str, value: object) -> np.ndarray | list[str]:
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        return list(value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.dtype.itemsize <= 8:
        return np.array(value, dtype=value.dtype.newbyteorder("="), order="C")
    what = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
    raise ValueError(f"{name!r} of the shard {path.name} is {what}: make a numeric numpy array or a list of str.")


def _pack(content: Content, metadata: dict[str, str]) -> bytes:
    tensors = {name: value for name, value in content.items() if isinstance(value, np.ndarray)}
    strings = {name: value for name, value in content.items() if isinstance(value, list)}
    metadata |= {"names": json.dumps(list(content)), "strings": json.dumps(strings)}
    return safetensors.numpy.save(tensors, metadata | {"sha256": _checksum(tensors, metadata)})


def _checksum(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape}".encode())
        digest.update(tensors[name].data if tensors[name].size else b"")
    return digest.hexdigest()
