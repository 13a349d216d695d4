"""Files from the web that the paper's experiment reads: COCO, NoCaps, Inception's weights, GloVe, CoreNLP.

Facts alone, with where they were seen. Licences of data and the sizes of what is unpacked were not verified here.
"""

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dfl_utils.world.profile import Profile

Places = Callable[[Profile], tuple[Path, ...]]


@dataclass(frozen=True)
class File:
    """A file, an archive or a list of images from the web.

    Attributes:
        name: what `dfl fetch --only` calls it.
        url: where it is published; of `nocaps-images` the file of captions, whose `coco_url` fields are fetched.
        places: asked of a profile: where `data` or a judge looks for it; `dfl fetch` puts it at the first.
        bytes: of the download; None: not known here.
        licence: as its page names it.
        page: of the licence or terms.
        unpacked: bytes of what stays on the disk, if it is more than the download.
        sha256, md5: of the download; where neither is known, `dfl fetch` notes the SHA-256 of the first whole one.
        members: members of an archive that are unpacked, whole names or folders ending in a slash; () for a plain file.
        count: files in the folder it becomes; None for a file.
    """

    name: str
    url: str
    places: Places
    bytes: int | None
    licence: str
    page: str
    unpacked: int = 0
    sha256: str | None = None
    md5: str | None = None
    members: tuple[str, ...] = ()
    count: int | None = None

    def found(self, profile: Profile) -> Path | None:
        """The first of its places that is there, whole or not."""
        return next((place for place in self.places(profile) if place.exists()), None)

    def download(self, profile: Profile) -> Path:
        """Where the download is put: beside what an archive becomes."""
        place = self.places(profile)[0]
        return place.with_name(Path(self.url).name) if self.members else place


def torch_hub() -> Path:
    """Folder in which torch's hub keeps weights, without importing torch."""
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "torch"
    return Path(home).expanduser() / "hub" / "checkpoints"


def _below(dataset: str, *names: str) -> Places:
    return lambda profile: tuple(profile.dataset_root(dataset) / name for name in names)


def _inception(profile: Profile) -> tuple[Path, ...]:
    return (Path(profile.inception) if profile.inception else torch_hub() / INCEPTION,)


def _spice(profile: Profile) -> tuple[Path, ...]:
    package = importlib.util.find_spec("pycocoevalcap").submodule_search_locations[0]
    return (Path(package) / "spice" / "lib" / "stanford-corenlp-3.6.0-models.jar",)


NOCAPS = "nocaps_val_4500_captions.json"
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
CORENLP = "stanford-corenlp-full-2015-12-09"
COCO = ("Flickr's terms of use, for the images", "https://cocodataset.org/#termsofuse")
FILES = (
    # Bytes and SHA-256 of COCO's archives: pytorch/vision, torchvision/prototype/datasets/_builtin/coco.py; MD5:
    # salesforce/LAVIS, lavis/datasets/download_scripts/download_coco.py.
    File(
        "coco-train",
        "http://images.cocodataset.org/zips/train2014.zip",
        _below("coco", "train2014", "images/train2014"),
        13_510_573_713,
        *COCO,
        unpacked=13_600_000_000,
        sha256="ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775",
        md5="0da8c0bd3d6becc4dcb32757491aca88",
        members=("train2014/",),
        count=82_783,
    ),
    File(
        "coco-val",
        "http://images.cocodataset.org/zips/val2014.zip",
        _below("coco", "val2014", "images/val2014"),
        6_645_013_297,
        *COCO,
        unpacked=6_700_000_000,
        sha256="fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0",
        md5="a3d79f5ed8d289b7a7554ce06a5782b3",
        members=("val2014/",),
        count=40_504,
    ),
    # Bytes in several public listings, SHA-256 in one; 144,186,139 bytes unpacked.
    File(
        "coco-splits",
        "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
        _below("coco", *(f"{folder}dataset_coco.json" for folder in ("", "karpathy/", "annotations/"))),
        36_745_453,
        "CC BY 4.0, for the captions",
        COCO[1],
        unpacked=144_186_139,
        sha256="4cfd70132527b80933105e5829dc9034eaab9573482e2e680abbab6130244817",
        members=("dataset_coco.json",),
    ),
    File(
        "nocaps-captions",
        f"https://nocaps.s3.amazonaws.com/{NOCAPS}",
        _below("nocaps", NOCAPS, f"annotations/{NOCAPS}"),
        None,
        "CC BY 2.0",
        "https://nocaps.org",
    ),
    # Open Images' validation images; about half a megabyte each, not verified here.
    File(
        "nocaps-images",
        f"https://nocaps.s3.amazonaws.com/{NOCAPS}",
        _below("nocaps", "images/val", "images", "val", "validation"),
        None,
        "CC BY 2.0, as listed",
        "https://storage.googleapis.com/openimages/web/factsfigures.html",
        unpacked=2_250_000_000,
        count=4500,
    ),
    # torch-fidelity's release v0.2.0; the file's name ends in the head of its SHA-256.
    File(
        "inception",
        f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION}",
        _inception,
        95_628_359,
        "Apache-2.0",
        "https://github.com/toshas/torch-fidelity",
        sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    ),
    # gensim-data's list.json: bytes and MD5.
    File(
        "word-vectors",
        "https://github.com/RaRe-Technologies/gensim-data/releases/download/glove-wiki-gigaword-200/"
        "glove-wiki-gigaword-200.gz",
        lambda profile: (Path(profile.word_vectors),),
        264_336_934,
        "PDDL",
        "https://nlp.stanford.edu/projects/glove",
        md5="59652db361b7a87ee73834a6c391dfc1",
    ),
    # The wheel pycocoevalcap lacks these two jars; it would fetch the same archive at SPICE's first call, unchecked.
    File(
        "corenlp",
        f"https://nlp.stanford.edu/software/{CORENLP}.zip",
        _spice,
        None,
        "GPL-3.0-or-later",
        "https://stanfordnlp.github.io/CoreNLP",
        unpacked=400_000_000,
        members=(f"{CORENLP}/stanford-corenlp-3.6.0.jar", f"{CORENLP}/stanford-corenlp-3.6.0-models.jar"),
    ),
)
