"""The published run: shards that travel with the book, so that it shows its numbers without any model's work.

`results/<profile>/store/` holds the shards that the published chapters asked for, as the run store wrote them, and
`index.json`: which chapter asked for which, and what those shards once cost that were left out (drawings that no page
shows, trained weights). It is only read. A shard whose version, model or parameters have changed is not found in it.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path

from dfl_utils import provenance, shards

INDEX = "index.json"
LAYOUT = 1
MEND = "`git checkout -- results/mini/store` brings it back"

_log = logging.getLogger(__name__)


def place() -> Path:
    """Where the book's own run lies."""
    return provenance.ROOT / "results" / "mini" / "store"


class PublishedRun:
    """A folder of published shards.

    Args:
        folder: see the module.
        inner: whether shards that are asked for by the making of others may come from it.

    Raises:
        ValueError: an index that is damaged, missing or of another layout.
    """

    def __init__(self, folder: Path | str, inner: bool = True):
        self.folder, self.inner = Path(folder), inner
        index = self.folder / INDEX
        try:
            found = json.loads(index.read_text(encoding="utf-8"))
            layout, self.chapters, self._left_out = found["layout"], found["chapters"], found["left_out"]
            if not isinstance(self.chapters, dict) or not isinstance(self._left_out, dict):
                raise ValueError("chapters and left_out are objects of names and values")
        except FileNotFoundError:
            raise ValueError(f"The published run has no {index}: all work is done anew; {MEND}.") from None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{index} of the published run is damaged ({error}): all work is done anew; {MEND}."
            ) from None
        if layout != LAYOUT:
            raise ValueError(
                f"{index} is of layout {layout}, and this code reads layout {LAYOUT}: all work is done anew; {MEND}."
            )

    def path(self, stem: str) -> Path:
        """Where a shard of that name lies, if it was published."""
        return self.folder / f"{stem}.safetensors"

    def cost(self, stem: str) -> tuple[float, int] | None:
        """Seconds and model calls of a shard's first making, also of one that was left out; None of an unknown one."""
        if stem in self._left_out:
            seconds, calls = self._left_out[stem]
            return float(seconds), int(calls)
        return shards.cost(self.path(stem))

    @cached_property
    def stems(self) -> frozenset[str]:
        """Names of the shards that are there."""
        return frozenset(path.stem for path in self.folder.glob("*.safetensors"))


def opened() -> PublishedRun | None:
    """The run that `DFL_PUBLISHED` names, or the book's own; None where that is empty, or cannot be used.

    `DFL_PUBLISHED_INNER=0`: nothing that a shard is made from comes out of it.
    """
    named = os.environ.get("DFL_PUBLISHED")
    folder = place() if named is None else Path(named)
    if named == "" or (named is None and not folder.parent.is_dir()):
        return None
    try:
        return PublishedRun(folder, inner=os.environ.get("DFL_PUBLISHED_INNER") != "0")
    except ValueError as error:
        _log.warning("%s", error)
        return None


def write(folder: Path, store: Path, asked: Mapping[str, Iterable[str]], behind: Iterable[str]) -> int:
    """Publish shards of a run store in place of what `folder` held.

    Args:
        folder: written whole, or left as it was.
        store: the run store's folder.
        asked: chapter -> names of the shards that it asked for; kinds that do not travel are left out.
        behind: names of the shards that those were made from or whose cost counts.

    Returns:
        Bytes of the shards.

    Raises:
        ValueError: a shard that is not there or not whole.
        OSError: the folder cannot be written.
    """
    from dfl_utils.store import KINDS

    staying = {kind.name for kind in KINDS.values() if not kind.travels}
    wanted = {name: sorted({stem for stem in stems if kind_of(stem) not in staying}) for name, stems in asked.items()}
    travelling = {stem for stems in wanted.values() for stem in stems}
    new, total = folder.with_name(f"{folder.name}.part"), 0
    shutil.rmtree(new, ignore_errors=True)
    try:
        new.mkdir(parents=True)
        for stem in sorted(travelling):
            source = store / f"{stem}.safetensors"
            shards.read(source)
            shutil.copyfile(source, new / source.name)
            total += source.stat().st_size
        rest = {*behind, *(stem for stems in asked.values() for stem in stems)} - travelling
        costs = {stem: shards.cost(store / f"{stem}.safetensors") for stem in sorted(rest)}
        left_out = {stem: list(cost) for stem, cost in costs.items() if cost}
        index = {"layout": LAYOUT, "chapters": wanted, "left_out": left_out}
        (new / INDEX).write_text(json.dumps(index, indent=0) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)
    except FileNotFoundError as error:
        raise ValueError(
            f"The run store has lost {Path(str(error)).name}: run `dfl book --scale full` again."
        ) from None
    except shards.Broken as error:
        raise ValueError(f"A shard of {store} is not whole ({error}): run `dfl book --scale full` again.") from None
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return total


def kind_of(stem: str) -> str:
    """The kind's name in a shard's file name."""
    return stem.rpartition("-")[0]
