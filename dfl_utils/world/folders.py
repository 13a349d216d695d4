"""Images and captions of one's own: any folder of images, with a captions file or without."""

import csv
import hashlib
import json
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from dfl_utils.world.annotations import Example, named_captions

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
FILE_COLUMNS = ("file", "file_name", "filename", "image")
CAPTION_COLUMNS = ("caption", "text")
METADATA = ("metadata.csv", "metadata.jsonl")  # of Hugging Face's imagefolder
Row = tuple[str, str, str]  # where it stands, file name, caption


def folder(images: Path | str, captions: Path | str | None = None) -> list[Example]:
    """Every image of a folder and its subfolders, in the order of their names, with its captions.

    Image ids are made of the names, so they stay when files or rows are added or reordered. An image that the captions
    file does not name has no references.

    Args:
        images: the folder.
        captions: a CSV file with a header, one row a caption (`file,caption`); JSON Lines with the same fields, where
            a caption may be a list of them; or JSON as COCO's captions or Karpathy's splits. File names are relative
            to `images`. None: `metadata.csv` or `metadata.jsonl` of the folder, where there is one, else no references.

    Raises:
        FileNotFoundError: no folder, no captions file.
        ValueError: no image in the folder; of the captions file an unknown format or column, a row that is broken, an
            empty caption, a file name that is no image of the folder.
    """
    root = Path(images)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is no folder of images: give one that is there.")
    found = _images(root)
    if not found:
        raise ValueError(f"{root} holds no image: put files of {', '.join(sorted(SUFFIXES))} into it.")
    if captions is None:
        captions = next((root / name for name in METADATA if (root / name).is_file()), None)
    references = _references(Path(captions), root, found) if captions is not None else {}
    return [Example(content_id(name.encode()), path, tuple(references.get(name, ()))) for name, path in found.items()]


def _images(root: Path) -> dict[str, Path]:
    """Name relative to the folder -> path, in the order of the names; hidden files are left out."""
    paths = (path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    named = {_normal(path.relative_to(root).as_posix()): path for path in paths if not path.name.startswith(".")}
    return dict(sorted(named.items()))


def _normal(name: str) -> str:
    # One spelling of an accented letter: file systems and editors differ in theirs.
    return unicodedata.normalize("NFC", name)


def content_id(content: bytes) -> int:
    """An id of what is given: 52 bits of its digest, which every JSON reader keeps."""
    return int(hashlib.sha256(content).hexdigest()[:13], 16)


def _references(path: Path, root: Path, found: dict[str, Path]) -> dict[str, list[str]]:
    readers = {".csv": _csv, ".jsonl": _json_lines, ".json": _json}
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: give a captions file that is there, or none.")
    if path.suffix.lower() not in readers:
        raise ValueError(f"{path} is no captions file that is known: give one of {', '.join(readers)}.")
    references = defaultdict(list)
    for place, name, caption in readers[path.suffix.lower()](path):
        key = _normal(name.strip().removeprefix("./"))
        if key not in found:
            raise ValueError(f"{path}, {place}, names {name!r}, which is no image of {root}: put it there, or drop it.")
        if not isinstance(caption, str) or not caption.strip():
            raise ValueError(f"{path}, {place}, has an empty caption of {name}: write one, or drop the row.")
        references[key].append(" ".join(caption.split()))
    return references


def _csv(path: Path) -> Iterator[Row]:
    # A comma in a caption that is not quoted makes a cell too many.
    mend = "give every row as many cells as the header has, and captions with a comma in double quotes"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            names = {name.strip(): name for name in reader.fieldnames or ()}
            file_name, caption = (names[column] for column in _columns(path, names))
            for row in reader:
                if None in row or None in row.values():
                    raise ValueError(f"{path}, line {reader.line_num}, has another number of cells: {mend}.")
                yield f"line {reader.line_num}", row[file_name], row[caption]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a CSV file in UTF-8 ({error}): save it as one.") from error


def _json_lines(path: Path) -> Iterator[Row]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
        records = [(k, json.loads(line)) for k, line in enumerate(lines, 1) if line.strip()]
    except ValueError as error:  # broken JSON, or bytes that are not UTF-8
        raise ValueError(f"{path} is not JSON Lines in UTF-8 ({error}): give one JSON object a line.") from error
    for k, record in records:
        if not isinstance(record, dict):
            raise ValueError(f"{path}, line {k}, is no JSON object: give one a line, with a file name and a caption.")
        file_name, caption = (record[column] for column in _columns(path, record))
        for text in caption if isinstance(caption, list) else [caption]:
            yield f"line {k}", str(file_name), text


def _json(path: Path) -> Iterator[Row]:
    return (("images", name, caption) for name, caption in named_captions(path))


def _columns(path: Path, names) -> tuple[str, str]:
    """Which columns hold file names and captions."""
    chosen = [next((name for name in known if name in names), None) for known in (FILE_COLUMNS, CAPTION_COLUMNS)]
    if None in chosen:
        raise ValueError(
            f"{path} has the columns {', '.join(map(repr, names)) or 'of nothing'}: it needs one of "
            f"{', '.join(FILE_COLUMNS)} and one of {', '.join(CAPTION_COLUMNS)}, separated by commas in a CSV file."
        )
    return chosen[0], chosen[1]
