"""Captions of images: files in their published schemas (Karpathy's splits, COCO, NoCaps), and folders of one's own."""

import ast
import hashlib
import io
import json
import logging
import os
import unicodedata
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import pandas as pd
from PIL import Image

from dfl_utils.world.profile import place

DOMAINS = {"in-domain": "in", "near-domain": "near", "out-domain": "out"}  # NoCaps' word -> ours
NOCAPS = {"in": 648, "near": 2938, "out": 914}  # images of validation by domain (https://nocaps.org)
# Karpathy moved most of COCO's validation images to training and calls them restval; the paper trains on both.
KARPATHY = {"train": ("train", "restval"), "val": ("val",), "test": ("test",)}
AGAIN = "fetch or write the file again"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Example:
    """An image on disk with people's captions of it; `domain` is in, near or out for NoCaps, else None."""

    image_id: int
    path: Path
    references: tuple[str, ...]
    domain: str | None = None


class Caption(NamedTuple):
    """A sentence that somebody wrote of an image, as typed: case, full stops and stray spaces included."""

    image_id: int
    text: str


def coco_captions(split: str = "train2014") -> list[Caption]:
    """Every caption of COCO 2014 (Lin et al., 2014), as they lie in the wheel pycocoevalcap: no image, no download.

    They go by subject, so a sample needs drawing: 414,113 of the 82,783 images of `train2014`, 202,654 of the 40,504
    of `val2014`.
    """
    with zipfile.ZipFile(files("pycocoevalcap") / "spice/spice-1.0.jar") as jar:
        annotations = json.loads(jar.read(f"coco/annotations/captions_{split}.json"))["annotations"]
    return [Caption(int(row["image_id"]), row["caption"]) for row in annotations]


def karpathy(root: Path, split: str, mend: str) -> list[Example]:
    """The images of a split of `dataset_coco.json`; places and errors as in `dfl_utils.world.data`."""
    path = first(root, ("dataset_coco.json", "karpathy/dataset_coco.json", "annotations/dataset_coco.json"), mend)
    content = read_json(path)
    with _published_form(path):
        images = [image for image in content["images"] if image["split"] in KARPATHY[split]]
        folders = {name: first(root, (name, f"images/{name}"), mend) for name in {i["filepath"] for i in images}}
        return [
            Example(int(image["cocoid"]), folders[image["filepath"]] / image["filename"],
                    _clean(sentence["raw"] for sentence in image["sentences"]))
            for image in images
        ]  # fmt: skip


def nocaps(root: Path, split: str, mend: str) -> list[Example]:
    """The images of a domain of NoCaps validation, or of all; places and errors as in `dfl_utils.world.data`."""
    name = "nocaps_val_4500_captions.json"
    path = first(root, (name, f"annotations/{name}"), mend)
    folder = first(root, ("images/val", "images", "val", "validation"), mend)
    content, references, examples = read_json(path), defaultdict(list), []
    with _published_form(path):
        for annotation in content["annotations"]:
            references[annotation["image_id"]].append(annotation["caption"])
        for image in content["images"]:
            domain = DOMAINS.get(image.get("domain"))
            if split in ("overall", domain):
                file = folder / (image.get("file_name") or f"{image['open_images_id']}.jpg")
                examples.append(Example(int(image["id"]), file, _clean(references[image["id"]]), domain))
    return examples


def named_captions(path: Path) -> list[tuple[str, str]]:
    """File name and caption, one pair a caption, of a JSON file in COCO's caption format, Karpathy's or BLIP's.

    Annotations without a caption, as of boxes, are passed over where others have one; a caption may be a list of them.
    """
    try:
        content = read_json(path)
    except ValueError as error:
        if "Extra data: line 2" in str(error):
            raise ValueError(f"{path} holds JSON Lines, an object a line: let its name end in .jsonl.") from error
        raise
    with _published_form(path, "known are COCO's captions, Karpathy's splits and BLIP's list of image and caption"):
        if isinstance(content, list):
            return [(one["image"], text) for one in content for text in _listed(one["caption"])]
        images = content["images"]
        if "annotations" in content:
            names = {str(image["id"]): image["file_name"] for image in images}  # ids come as numbers and as text
            if len(names) < len(images):
                raise ValueError("an image id comes twice")
            written = [one for one in content["annotations"] if "caption" in one] or content["annotations"]
            return [(names[str(one["image_id"])], text) for one in written for text in _listed(one["caption"])]
        paths = [PurePosixPath(image.get("filepath") or "", image["filename"]).as_posix() for image in images]
        return [(p, text["raw"]) for p, image in zip(paths, images, strict=True) for text in image["sentences"]]


def _listed(caption: str | list[str]) -> list[str]:
    return caption if isinstance(caption, list) else [caption]


@contextmanager
def _published_form(path: Path, mend: str = AGAIN) -> Iterator[None]:
    """ValueError with the file's name where a field is missing or of another kind."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        said = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{path} is not of its published form ({said}); {mend}.") from error


def _clean(captions: Iterable[str]) -> tuple[str, ...]:
    """Captions with single spaces between words and none around them; blank ones are left out."""
    return tuple(filter(None, (" ".join(text.split()) for text in captions)))


def first(root: Path, names: Sequence[str], mend: str) -> Path:
    """The first of `names` that lies in `root`; FileNotFoundError with the mend where none does."""
    for name in names:
        if (root / name).exists():
            return root / name
    raise FileNotFoundError(f"{root / names[0]} is missing; {mend}.")


def read_json(path: Path) -> Any:
    """Parse a JSON file in UTF-8, with or without a byte order mark; ValueError names it where it is broken."""
    try:
        return json.loads(_decoded(path))
    except (ValueError, RecursionError) as error:  # broken JSON, bytes that are not UTF-8, or lists without an end
        raise ValueError(f"{path} is not valid JSON ({error}); {AGAIN}.") from error


def _decoded(path: Path) -> str:
    """The text of a file in UTF-8, with or without a byte order mark; ValueError names the first line that is not."""
    content = Path(path).read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"its line {line} is not in UTF-8, byte 0x{content[error.start]:02x}") from None


# --- Images and captions of one's own: any folder of images, with a captions file or without.

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
    paths = _images(root)
    if not paths:
        raise ValueError(f"{root} holds no image that is read: put files of {', '.join(sorted(FORMATS))} into it.")
    files = [place(captions)] if captions is not None else sorted(p for name in METADATA for p in root.rglob(name))
    references = {}
    for file in files:
        more = _references(file, root if captions is not None else file.parent, root, paths)
        if twice := references.keys() & more.keys():
            raise ValueError(f"{file} has captions of {min(twice)}, as has another file of metadata: keep one.")
        references |= more
    return [Example(content_id(name.encode()), path, tuple(references.get(name, ()))) for name, path in paths.items()]


def _images(root: Path) -> dict[str, Path]:
    """Name relative to the folder -> path, in the order of the names; hidden files are left out, others are said."""
    paths = [path for path in root.rglob("*") if not path.name.startswith(".") and path.is_file()]
    named = {_normal(path.relative_to(root).as_posix()): path for path in paths if path.suffix.lower() in SUFFIXES}
    if odd := [name for name in named if not is_text(name)]:
        raise ValueError(f"{root} holds the file {os.fsencode(odd[0])}, whose name is not in UTF-8: rename it.")
    known = PHOTOS | Image.registered_extensions().keys() - SUFFIXES
    other = sorted(path.name for path in paths if path.suffix.lower() in known)
    if other:
        _log.warning("%d files of %s are of no format that is read, such as %s", len(other), root, other[0])
    return dict(sorted(named.items()))


def _normal(name: str) -> str:
    """One spelling of an accented letter: file systems and editors differ in theirs."""
    return unicodedata.normalize("NFC", name)


HALF = "half a character, which no text of UTF-8 has"


def is_text(text: str) -> bool:
    """Whether UTF-8 can hold a text: half a character (a lone surrogate) it cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def content_id(content: bytes) -> int:
    """An id of bytes: 52 bits of their digest, which every JSON reader keeps."""
    return int(hashlib.sha256(content).hexdigest()[:13], 16)


def _references(path: Path, base: Path, root: Path, paths: dict[str, Path]) -> dict[str, list[str]]:
    """Captions by the names of `paths`; those in the file are relative to `base`."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: give a captions file that is there, or none.")
    references = defaultdict(list)
    for name, caption in _rows(path):
        key = _normal(os.path.relpath(base / str(name).strip(), root).replace(os.sep, "/"))
        if key not in paths:
            raise ValueError(f"{path} names {name!r}, which is no image of {base}: put it there, or drop it.")
        if not isinstance(caption, str) or not caption.strip():
            raise ValueError(f"{path} has {caption!r} for a caption of {name}: write a text, or drop the row.")
        if not is_text(caption):
            raise ValueError(f"{path} has {HALF} in a caption of {name}: write it anew.")
        references[key].append(" ".join(caption.split()))
    if not references:
        raise ValueError(f"{path} holds no caption: write some, or give no file of captions.")
    return references


def _rows(path: Path) -> Iterable[tuple[str, str]]:
    """File name and caption, one pair a caption."""
    if path.suffix.lower() == ".json":
        return named_captions(path)
    try:
        if path.suffix.lower() == ".jsonl":
            table = pd.DataFrame(_records(path))
        else:
            table = pd.read_csv(io.StringIO(_decoded(path)), dtype=str, keep_default_na=False).map(_a_list)
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


def _a_list(cell: str) -> str | list[str]:
    """A cell that holds a list of texts, as pandas and spreadsheets write one, as that list."""
    if not (cell.startswith("[") and cell.endswith("]")):
        return cell
    try:
        texts = ast.literal_eval(cell)
    except (ValueError, SyntaxError):
        return cell
    return texts if texts and all(isinstance(text, str) for text in texts) else cell


def _records(path: Path) -> list[object]:
    """What each line of JSON Lines holds; ValueError names a line that is broken."""
    records = []
    for number, line in enumerate(_decoded(path).split("\n"), 1):
        try:
            records += [json.loads(line)] if line.strip() else []
            if not is_text(json.dumps(records[-1:], ensure_ascii=False)):
                raise ValueError(HALF)
            if records and not isinstance(records[-1], dict):
                raise ValueError("no object")
        except (ValueError, RecursionError) as error:
            raise ValueError(f"its line {number}: {error}; write one JSON object a line") from error
    return records
