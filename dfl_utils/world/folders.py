"""Images and captions of one's own: any folder of images, with a captions file or without."""

import hashlib
import json
import logging
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd
from PIL import Image

from dfl_utils.world.annotations import Example, named_captions
from dfl_utils.world.profile import place

_log = logging.getLogger(__name__)

FORMATS = {"AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP"}  # of Pillow, what photos come in
SUFFIXES = {suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS}
PHOTOS = {".heic", ".heif", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".svg"}  # which Pillow does not open
FILE_COLUMNS = ("file", "file_name", "filename", "image")
CAPTION_COLUMNS = ("caption", "text")
METADATA = ("metadata.csv", "metadata.jsonl")  # of Hugging Face's imagefolder


def folder(images: Path | str, captions: Path | str | None = None) -> list[Example]:
    """Every image of a folder and its subfolders, in the order of their names, with its captions.

    Image ids are made of the names, so they stay when files or rows are added or reordered. An image that the captions
    file does not name has no references.

    Args:
        images: the folder.
        captions: a CSV file with a header, one row a caption (`file,caption`); JSON Lines with the same fields, where
            a caption may be a list of them; or JSON as COCO's captions or Karpathy's splits. File names are relative
            to `images`. None: `metadata.csv` or `metadata.jsonl` of the folder or its subfolders, whose names are
            relative to their own folder; where there is none, no references.

    FileNotFoundError, ValueError: what is not there or not as said, and an empty caption.
    """
    root = place(images)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is no folder of images: give one that is there.")
    found = _images(root)
    if not found:
        raise ValueError(f"{root} holds no image that is read: put files of {', '.join(sorted(FORMATS))} into it.")
    files = [place(captions)] if captions is not None else sorted(p for name in METADATA for p in root.rglob(name))
    references = {}
    for file in files:
        references |= _references(file, root if captions is not None else file.parent, root, found)
    return [Example(content_id(name.encode()), path, tuple(references.get(name, ()))) for name, path in found.items()]


def _images(root: Path) -> dict[str, Path]:
    """Name relative to the folder -> path, in the order of the names; hidden files are left out, others are said."""
    paths = [path for path in root.rglob("*") if not path.name.startswith(".") and path.is_file()]
    named = {_normal(path.relative_to(root).as_posix()): path for path in paths if path.suffix.lower() in SUFFIXES}
    known = PHOTOS | Image.registered_extensions().keys() - SUFFIXES
    other = sorted(path.name for path in paths if path.suffix.lower() in known)
    if other:
        _log.warning("%d files of %s are of no format that is read, such as %s", len(other), root, other[0])
    return dict(sorted(named.items()))


def _normal(name: str) -> str:
    """One spelling of an accented letter: file systems and editors differ in theirs."""
    return unicodedata.normalize("NFC", name)


def is_text(text: str) -> bool:
    """Whether UTF-8 can hold a text: half a character (a lone surrogate) it cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def content_id(content: bytes) -> int:
    """An id of what is given: 52 bits of its digest, which every JSON reader keeps."""
    return int(hashlib.sha256(content).hexdigest()[:13], 16)


def _references(path: Path, base: Path, root: Path, found: dict[str, Path]) -> dict[str, list[str]]:
    """Captions by the names of `found`; those in the file are relative to `base`."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: give a captions file that is there, or none.")
    references = defaultdict(list)
    for name, caption in _rows(path):
        key = _normal(os.path.relpath(base / str(name).strip(), root).replace(os.sep, "/"))
        if key not in found:
            raise ValueError(f"{path} names {name!r}, which is no image of {base}: put it there, or drop it.")
        if not isinstance(caption, str) or not caption.strip():
            raise ValueError(f"{path} has an empty caption of {name}: write one, or drop the row.")
        references[key].append(" ".join(caption.split()))
    return references


def _records(path: Path) -> Iterator[object]:
    """What each line holds, of JSON Lines as JSON; ValueError names a line that is broken."""
    read = _json if path.suffix.lower() == ".jsonl" else str
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        try:
            if text := line.decode().strip():
                yield read(text)
        except (ValueError, RecursionError) as error:
            mend = "write one JSON object a line, in UTF-8"
            raise ValueError(f"{path}, line {number}, cannot be read ({error}): {mend}.") from error


def _json(line: str) -> object:
    record = json.loads(line)
    if not is_text(json.dumps(record, ensure_ascii=False)):
        raise ValueError("half a character, which no text of UTF-8 has")
    return record


def _rows(path: Path) -> Iterable[tuple[str, str]]:
    """File name and caption, one pair a caption."""
    if path.suffix.lower() == ".json":
        return named_captions(path)
    records = list(_records(path))
    try:
        if path.suffix.lower() == ".jsonl":
            table = pd.DataFrame(records)
        else:
            table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is no table of captions in UTF-8 ({error}): save it as CSV or JSON Lines.") from error
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes cells without a name for the index
        raise ValueError(f"{path} has more cells in a row than in its header: put captions with a comma in quotes.")
    table.columns = [str(name).strip() for name in table]
    chosen = [next((c for c in known if c in table), None) for known in (FILE_COLUMNS, CAPTION_COLUMNS)]
    if None in chosen:
        needed = f"one of {', '.join(FILE_COLUMNS)} and one of {', '.join(CAPTION_COLUMNS)}, separated by commas"
        raise ValueError(f"{path} has the columns {', '.join(map(repr, table))}: it needs {needed}.")
    if dict in set(map(type, table[chosen[1]])):
        raise ValueError(f"{path} has an object for a caption: write a text, or a list of texts.")
    return table[chosen].explode(chosen[1]).itertuples(index=False)
