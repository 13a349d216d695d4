"""The run store: captions, reconstructions, embeddings and scores as shards, addressed by what made them.

A shard (`shards`) is one file named by its kind and the SHA-256 of its key; one that is not whole is made anew.
Processes and machines that share a folder claim its shards (`processes`), so that each is made once. Beside the folder
that a run writes lies the published run (`published_run`), which is only read.
"""

import contextlib
import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from dfl_utils.store import provenance, published_run, shards
from dfl_utils.store.processes import claim
from dfl_utils.store.published_run import PublishedRun
from dfl_utils.store.shards import Content

Held = TypeVar("Held")  # what a kind's contents are read as
Make = Callable[[], Any]  # a content, or (content, model calls), or with the seconds that an earlier attempt had spent


@dataclass(frozen=True)
class Kind(Generic[Held]):
    """What shards of one kind hold, declared once, beside what makes them; ValueError where it is declared twice."""

    name: str  # part of the file name
    # A dataclass of arrays (bool, integer, float) and lists of str; None: a dict of them.
    holds: type[Held] | None = None
    version: int = 1  # part of every key: raised by whoever changes what the maker puts out (CONTRIBUTING says when)
    travels: bool = True  # whether the published run takes such shards along
    made_from: tuple["Kind", ...] = ()  # kinds that its maker reads and its key does not name: their versions are in it

    def __post_init__(self):
        if KINDS.setdefault(self.name, self) != self:
            raise ValueError(f"Kind {self.name} is declared twice: give one of the two another name.")

    def key(self, **parts: Any) -> dict[str, Any]:
        """The whole key of a shard: kind and versions beside the parts that it depends on."""
        if taken := parts.keys() & {"kind", "version", "made from"}:
            raise ValueError(f"A key of {self.name} names {min(taken)} twice: give that part another name.")
        behind = {kind.name: kind.version for kind in self._behind()}
        own = {"kind": self.name, "version": self.version}
        return own | ({"made from": behind} if behind else {}) | parts

    def _behind(self) -> Iterator["Kind"]:
        for kind in self.made_from:
            yield kind
            yield from kind._behind()

    def stem(self, key: Mapping[str, Any]) -> str:
        """A shard's file name without its ending; ValueError of a key that is not JSON."""
        return f"{self.name}-{hashlib.sha256(canonical(self.key(**key)).encode()).hexdigest()}"


KINDS: dict[str, Kind] = {}  # every kind that is declared, by name


@dataclass(frozen=True, eq=False)
class Job(Generic[Held]):
    """A shard that is wanted: its kind, its key, and what makes its content where it is not there."""

    kind: Kind[Held]
    key: Mapping[str, Any]
    make: Make


_log = logging.getLogger(__name__)


class Busy(Exception):
    """A shard, or one that it is made from, is being made by another process."""


@dataclass
class Spent:
    """What the shards of one kind cost that a chapter asked for, each counted once, wherever they were made.

    What only the making of others asked for costs nothing: a run that finds those others does not meet it.
    """

    seconds: float = 0.0  # of their first making
    calls: int = 0
    made: int = 0  # here, those that others were made from too
    loaded: int = 0


def ledger(path: Path) -> list[tuple[str, str]]:
    """What a process asked for, by the file that `DFL_LEDGER` named for it: `(how, stem)` of each shard.

    `made`, `found` (in the run store) and `published` shards were asked for by a chapter, `inner` ones by the making of
    others or of a kind that does not travel, `counted` ones for what they once cost. None where there is no file.
    """
    if not path.is_file():
        return []
    lines = [tuple(line.split()) for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if len(line) == 2]  # the last may be cut short


def default_root() -> Path:
    """`$DFL_STORE`, or `.store` at the root of the repository."""
    return provenance.named_folder("DFL_STORE") or provenance.ROOT / ".store"


class RunStore:
    """A folder of shards.

    Args:
        root: the folder, made if missing; `default_root()` if None.
        published: a run to read from beside it; the book's own where neither is given, if `DFL_PUBLISHED` does not name
            another folder, or none (empty).

    Attributes:
        spent: kind -> `Spent`, over the shards that this object has made or loaded.

    Raises:
        OSError: the folder cannot be written, said before any work is done.
    """

    def __init__(self, root: Path | str | None = None, published: PublishedRun | None = None):
        self.root = Path(root) if root is not None else default_root()
        self.published = published if published or root is not None else published_run.opened()
        self.spent: dict[str, Spent] = {}
        self._asked: dict[str, bool] = {}  # stem -> whether a chapter asked for it, or the making of others alone
        self._noted: set[str] = set()
        self._only = _only()
        self._depth = 0  # makes in hand, one inside the other
        self._patient = True  # waits for what another process is making
        self._aside = 0.0  # seconds that the make in hand passed inside the store, on shards of their own
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.root).close()
        except OSError as error:
            reason = error.strerror or error
            raise OSError(f"The run store {self.root} cannot be written ({reason}): set DFL_STORE.") from error
        for pattern in ("*.claim", "*/*.claim"):  # of processes killed between finishing their work and saying so
            for left in self.root.glob(pattern):
                with claim(left, wait=False) or contextlib.nullcontext():
                    pass

    def path(self, kind: Kind, key: Mapping[str, Any]) -> Path:
        """Where the shard of that kind and key lies, or would lie; ValueError of a key that is not JSON."""
        return self.root / f"{kind.stem(key)}.safetensors"

    def get(self, kind: Kind[Held], key: Mapping[str, Any], make: Make) -> Held:
        """The content of a shard: loaded if it is there and whole, else made and stored.

        Another process that is making the same shard is waited for.

        Args:
            key: all that the content depends on beside the kind, as JSON (1 and 1.0 are different keys).
            make: returns what the kind holds, or `(content, model calls)`, or with a third: the seconds that an attempt
                which broke off had spent on it.

        Raises:
            ValueError: a content that cannot be stored, a key that is not JSON.
            OSError: the shard cannot be written (disk full).
        """
        content = self._content(kind, key, make)
        return kind.holds(**content) if kind.holds else content

    def fill(self, jobs: Sequence[Job[Held]]) -> Iterator[tuple[int, Held]]:
        """Make or load every job's shard: its place among the jobs and its content, those first that nobody is making.

        A job is also put aside where another process is making a shard that it needs.
        """
        waiting = list(range(len(jobs)))
        while waiting:
            claimed = []
            for place in waiting:
                content = self._at_once(jobs[place])
                if content is None:
                    claimed.append(place)
                else:
                    yield place, content
            if claimed:
                place = claimed.pop(0)
                yield place, self.get(jobs[place].kind, jobs[place].key, jobs[place].make)
            waiting = claimed

    def _at_once(self, job: Job[Held]) -> Held | None:
        """A job's content; None where another process is making it, or a shard that it is made from."""
        patient, self._patient = self._patient, False
        try:
            return self.get(job.kind, job.key, job.make)
        except Busy:
            return None
        finally:
            self._patient = patient

    def cost(self, kind: Kind, key: Mapping[str, Any]) -> tuple[float, int] | None:
        """Seconds and model calls of a shard's first making, here or in the published run.

        None of an unknown one, or of a damaged one, whose cost is not known until it is made again.
        """
        path = self.path(kind, key)
        with contextlib.suppress(shards.Broken):
            if cost := shards.cost(path):
                return cost
        return self.published.cost(path.stem) if self.published else None

    def count(self, kind: Kind, key: Mapping[str, Any]) -> None:
        """Add to `spent` what a shard cost that others were made from, although nobody needs its content now.

        A lost or damaged one counts for nothing until it is made again.
        """
        if cost := self.cost(kind, key):
            self._meet("counted", kind.stem(key), kind, *cost)

    def _content(self, kind: Kind, key: Mapping[str, Any], make: Make) -> Content:
        began, path = time.perf_counter(), self.path(kind, key)
        try:
            if (content := self._from_published(path, kind, key)) is not None:
                return content
            # Looked at again under the claim: whoever held it before may have made the shard.
            with contextlib.suppress(FileNotFoundError, shards.Broken):
                return self._taken("found", path.stem, kind, key, shards.read(path))
            if self._only is not None and not self._depth and path.stem not in self._only:
                raise ValueError(
                    f"{path.stem} is not in the published run: a version, a model, an input, a parameter or a package "
                    "has changed since (or DFL_ONLY was left set: unset it)."
                )
            held = claim(path.with_suffix(".claim"), wait=self._patient)
            if held is None:
                raise Busy(f"{path.stem} is being made by another process.")  # caught by the `fill` that does not wait
            with held:
                try:
                    return self._taken("found", path.stem, kind, key, shards.read(path))
                except FileNotFoundError:
                    pass
                except shards.Broken as broken:
                    _log.warning("%s is not whole (%s) and is made anew.", path, broken)
                return self._make(path, kind, key, make)
        finally:
            self._aside += time.perf_counter() - began

    def _from_published(self, path: Path, kind: Kind, key: Mapping[str, Any]) -> Content | None:
        """The shard from the published run; None where it has none, or one that is not whole."""
        stem = path.stem
        if self.published is None or (self._depth and not self.published.inner) or stem in (self._only or ()):
            return None
        try:
            return self._taken("published", stem, kind, key, self.published.read(stem))
        except FileNotFoundError:
            return None
        except shards.Broken as broken:
            file, mend = self.published.file(stem), published_run.MEND
            _log.warning("%s is not whole (%s in %s): its work is done anew; %s.", file, broken, stem, mend)
            return None

    def _make(self, path: Path, kind: Kind, key: Mapping[str, Any], make: Make) -> Content:
        outer, self._aside, began = self._aside, 0.0, time.perf_counter()
        self._depth += 1
        try:
            made = make()
            seconds = round(time.perf_counter() - began - self._aside, 3)
        finally:
            self._aside = outer
            self._depth -= 1
        content, calls, *earlier = made if isinstance(made, tuple) else (made, 0)
        content = vars(content) if kind.holds else content
        seconds += sum(earlier)
        metadata = {"key": canonical(kind.key(**key)), "seconds": str(seconds), "calls": str(int(calls))}
        content = shards.write(path, content, metadata)
        self._meet("made", path.stem, kind, seconds, calls)
        return self._handed_on(path.stem, content)

    def _handed_on(self, stem: str, content: Content) -> Content:
        """What a chapter goes on with: of a shard that `dfl verify` makes anew, the published content.

        The two are compared afterwards. What was made from a training names the digests of its weights, which another
        processor rounds otherwise.
        """
        if self._only and stem in self._only and self.published:
            with contextlib.suppress(FileNotFoundError, shards.Broken):
                return self.published.read(stem)[0]
        return content

    def _taken(self, how: str, stem: str, kind: Kind, key: Mapping[str, Any], shard: tuple[Content, dict]) -> Content:
        """A content that was read, held to its key and counted."""
        content, metadata = shard
        if metadata.get("key") != canonical(kind.key(**key)):  # renamed, or copied to the wrong place
            raise shards.Broken("it is the shard of another key")
        self._meet(how, stem, kind, float(metadata["seconds"]), int(metadata["calls"]))
        return self._handed_on(stem, content)

    def _meet(self, how: str, stem: str, kind: Kind, seconds: float, calls: int) -> None:
        """Count a shard, and note it in the ledger."""
        spent, asked = self.spent.setdefault(kind.name, Spent()), not self._depth
        if stem not in self._asked:
            spent.made += how == "made"
            spent.loaded += how != "made"
        if asked and not self._asked.get(stem):
            spent.seconds += seconds
            spent.calls += calls
        self._asked[stem] = asked or self._asked.get(stem, False)
        line = f"{how if how == 'counted' or asked and kind.travels else 'inner'} {stem}\n"
        path = os.environ.get("DFL_LEDGER")
        if path and line not in self._noted:
            self._noted.add(line)
            try:
                with Path(path).open("a", encoding="utf-8") as file:
                    file.write(line)
            except OSError as error:  # no FileNotFoundError, which means that a shard is not there
                raise OSError(f"{path} cannot be written ({error.strerror or error}): free some space.") from error


def _only() -> frozenset[str] | None:
    """The shards that a chapter may make where `DFL_ONLY` names a file of them; None: any."""
    path = os.environ.get("DFL_ONLY")
    return frozenset(Path(path).read_text(encoding="utf-8").split()) if path else None


def canonical(key: Mapping[str, Any]) -> str:
    """A key as the text that is hashed; ValueError where it is not JSON."""
    try:
        return json.dumps(key, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"The shard key {key!r} is not plain JSON ({error}): use str, int, float, list and dict."
        ) from None
