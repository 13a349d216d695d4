"""The published run: shards that travel with the book, so that it shows its numbers without any model's work.

`results/<profile>/store/` holds the shards that the published chapters asked for, as the run store wrote them: those of
a kind in one file, compressed together, since their keys name the same images again and again. `index.json` says which
chapter asked for which, and what those shards once cost that were left out (drawings that no page shows, trained
weights). It is only read. A shard whose version, model or parameters have changed is not found in it.
"""

import json
import logging
import lzma
import os
import shutil
from collections.abc import Iterable, Mapping
from functools import cache, cached_property
from itertools import groupby
from pathlib import Path

import numpy as np

from dfl_utils.store import provenance, shards

INDEX = "index.json"
LAYOUT = 1
MEND = "`git checkout -- results/mini/store` brings it back"

_log = logging.getLogger(__name__)


def place() -> Path:
    """Where the book's own run lies."""
    return provenance.ROOT / "results" / "mini" / "store"


class PublishedRun:
    """A folder of published shards; `inner` says whether what others are made from may come from it.

    ValueError: an index that is damaged, missing or of another layout.
    """

    def __init__(self, folder: Path | str, inner: bool = True):
        self.folder, self.inner = Path(folder), inner
        self._packs: dict[Path, dict[str, bytes]] = {}
        index = self.folder / INDEX
        try:
            found = json.loads(index.read_text(encoding="utf-8"))
            if found["layout"] != LAYOUT:
                raise ValueError(f"it is of layout {found['layout']}, and this code reads layout {LAYOUT}")
            self.chapters, self._left_out = dict(found["chapters"]), dict(found["left_out"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{index} of the published run cannot be read ({error}): all work is done anew; {MEND}."
            ) from None

    def require_whole(self) -> None:
        """ValueError that names the first file that is missing, damaged or lacks a shard that the index lists."""
        for file in sorted({self.file(stem) for stem in self._listed}):
            if lost := self._unpacked(file)[1]:
                raise ValueError(f"{file} of the published run {lost}: {MEND}.")

    def file(self, stem: str) -> Path:
        """The file that holds a shard of that name, if it was published."""
        return self.folder / f"{kind_of(stem)}.safetensors"

    def read(self, stem: str) -> tuple[shards.Content, dict[str, str]]:
        """Content and metadata of a shard.

        FileNotFoundError: it was not published, or its file is damaged, which was said; shards.Broken: it is damaged.
        """
        return shards.loads(self._bytes(stem))

    def metadata(self, stem: str) -> dict[str, str]:
        """What lies beside a shard's content. Raises: as `read`."""
        return shards.header(self._bytes(stem))

    def cost(self, stem: str) -> tuple[float, int] | None:
        """Seconds and model calls of a shard's first making, also of one that was left out; None of an unknown one."""
        try:
            found = self._left_out.get(stem) or [self.metadata(stem)[name] for name in ("seconds", "calls")]
        except (FileNotFoundError, shards.Broken):
            return None
        return float(found[0]), int(found[1])

    @cached_property
    def stems(self) -> frozenset[str]:
        """Names of the shards that are there, those of damaged files left out."""
        return frozenset(stem for file in self.folder.glob("*.safetensors") for stem in self._pack(file))

    @cached_property
    def _listed(self) -> frozenset[str]:
        return frozenset(stem for stems in self.chapters.values() for stem in stems)

    def _bytes(self, stem: str) -> bytes:
        try:
            return self._pack(self.file(stem))[stem]
        except KeyError:
            raise FileNotFoundError(stem) from None

    def _pack(self, file: Path) -> dict[str, bytes]:
        """All shards of a file, read once; what is wrong with it is said then, and a damaged one holds none."""
        if file not in self._packs:
            self._packs[file], lost = self._unpacked(file)
            if lost:
                _log.warning("%s of the published run %s: that work is done anew; %s.", file, lost, MEND)
        return self._packs[file]

    def _unpacked(self, file: Path) -> tuple[dict[str, bytes], str]:
        """The shards of a file, and what is wrong with it, if anything."""
        try:
            found = unpack(file)
        except FileNotFoundError:
            found = {}
        except shards.Broken as error:
            return {}, f"is not whole ({error})"
        lost = [stem for stem in self._listed if self.file(stem) == file and stem not in found]
        return found, f"lacks {min(lost)}" if lost else ""


def unpack(file: Path) -> dict[str, bytes]:
    """The shards of a published file by name; shards.Broken where it is damaged."""
    try:
        content, metadata = shards.read(file)
        data, found, start = lzma.decompress(content["shards"].tobytes()), {}, 0
        for stem, size in zip(content["names"], content["sizes"].tolist(), strict=True):
            found[stem] = data[start : start + size]
            start += size
    except (lzma.LZMAError, KeyError, ValueError) as error:
        raise shards.Broken(str(error)) from error
    return found


def pack(file: Path, found: Mapping[str, bytes]) -> None:
    """Write the shards of one kind as one file; equal shards give an equal file but for the order of its header."""
    data = np.frombuffer(lzma.compress(b"".join(found.values())), np.uint8)
    sizes = np.array([len(one) for one in found.values()], np.int64)
    shards.write(file, {"names": list(found), "sizes": sizes, "shards": data}, {})


def opened() -> PublishedRun | None:
    """The run that `DFL_PUBLISHED` names, or the book's own; None where that is empty, or cannot be used.

    `DFL_PUBLISHED_INNER=0`: nothing that a shard is made from comes out of it.
    """
    named = os.environ.get("DFL_PUBLISHED")
    folder = provenance.named_folder("DFL_PUBLISHED") or place()
    if named == "" or (named is None and not folder.parent.is_dir()):
        return None
    inner, index = os.environ.get("DFL_PUBLISHED_INNER") != "0", folder / INDEX
    try:
        return _opened(folder, inner, index.stat().st_mtime_ns if index.is_file() else 0)
    except ValueError as error:
        _log.warning("%s", error)
        return None


@cache  # what was read of it serves every store of a process, and those forked from it
def _opened(folder: Path, inner: bool, changed: int) -> PublishedRun:
    return PublishedRun(folder, inner)


def write(
    folder: Path,
    store: Path,
    asked: Mapping[str, Iterable[str]],
    behind: Iterable[str],
    before: PublishedRun | None = None,
) -> None:
    """Publish shards of the run store in a folder in place of what `folder` held, or leave that as it was.

    Args:
        asked: chapter -> names of the shards that it asked for.
        behind: names of those of which the cost alone is published: the former were made from them, or it counts.
        before: a published run that went on: what the run store lacks is taken from it.

    Raises:
        ValueError: a shard that is not there or not whole.
    """
    asked = {name: sorted(set(stems)) for name, stems in asked.items()}
    travelling = {stem for stems in asked.values() for stem in stems}
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        for kind, stems in groupby(sorted(travelling, key=lambda stem: (kind_of(stem), stem)), kind_of):
            found = {stem: _shard(store, stem, before) for stem in stems}
            for data in found.values():
                shards.loads(data)
            pack(part / f"{kind}.safetensors", found)
        costs = {stem: shards.cost(store / f"{stem}.safetensors") for stem in sorted({*behind} - travelling)}
        if before:
            costs = {stem: cost or before.cost(stem) for stem, cost in costs.items()}
        left_out = {stem: list(cost) for stem, cost in costs.items() if cost}
        index = {"layout": LAYOUT, "chapters": asked, "left_out": left_out}
        (part / INDEX).write_text(json.dumps(index, indent=0) + "\n", encoding="utf-8")
    except (FileNotFoundError, shards.Broken) as error:
        shutil.rmtree(part)
        what = Path(error.filename).stem if isinstance(error, FileNotFoundError) else error
        raise ValueError(
            f"The run store has lost a shard ({what}): run `make clean` and `dfl book --scale full`."
        ) from None
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)  # git has what lay there before


def _shard(store: Path, stem: str, before: PublishedRun | None) -> bytes:
    file = store / f"{stem}.safetensors"
    return before._bytes(stem) if before and not file.is_file() else file.read_bytes()


def kind_of(stem: str) -> str:
    """The kind's name in a shard's file name."""
    return stem.rpartition("-")[0]
