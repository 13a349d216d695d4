"""Tokenizers and processors, read once for all checkpoints that hold the same files.

A finetuned model's folder has a copy of its base's tokenizer, and every chapter loads many of them. What is remembered
of a tokenizer (`alignment.once_a_tokenizer`) then holds for all of them too. Nobody changes a shared one.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from dfl_utils import provenance
from dfl_utils.annotations import read_json

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
