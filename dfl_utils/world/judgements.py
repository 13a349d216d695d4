"""What people said of captions, from the files in which it was published: a judge of captions is compared with it.

Expected in a folder, each where it is there, with the images anywhere beneath:

    ExpertAnnotations.txt, CrowdFlowerAnnotations.txt, Flickr8k.token.txt    Flickr8k (Hodosh et al., JAIR 2013)
    {8k,30k,coco}_{correctness,throughness}.csv                             Composite (Aditya et al., CVIU 2018)
    pair_pascal.mat, consensus_pascal.mat                                   Pascal-50S (Vedantam et al., CVPR 2015)
    foilv1.0_test_2017.json                                                 FOIL (Shekhar et al., ACL 2017)
"""

import csv
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from scipy.io import loadmat
from scipy.stats import kendalltau

from dfl_utils.world.annotations import SUFFIXES

PASCAL_KINDS = {1: "HC", 2: "HI", 3: "HM", 4: "MM"}  # two humans' correct, one incorrect, human and machine, machines
PASCAL_VOTES = 48  # triplets a pair
COMPOSITE = tuple(f"{part}_{asked}.csv" for part in ("8k", "30k", "coco") for asked in ("correctness", "throughness"))


@dataclass(frozen=True)
class Rated:
    """A caption of an image and one person's rating, or the share of people who found that it fits."""

    image: Path
    caption: str
    rating: float


@dataclass(frozen=True)
class Preferred:
    """Two captions of an image, of which one is right, or was liked by most."""

    image: Path
    better: str
    worse: str
    kind: str = ""


class _Images:
    """The images beneath a folder, by the name of the file without its ending."""

    def __init__(self, root: Path):
        self.root, self.known = root, {p.stem: p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES}

    def __getitem__(self, name: str) -> Path:
        stem = Path(name.replace("\\", "/")).stem
        if stem not in self.known:
            raise FileNotFoundError(f"{self.root} has no image {stem}, which its annotations name: put it beneath.")
        return self.known[stem]


def read(root: Path | str) -> dict[str, list[Rated] | list[Preferred]]:
    """Every collection that a folder holds, by its name.

    Raises:
        FileNotFoundError: a folder that holds none, an image or a file beside it that is missing.
        ValueError: a file in another form.
    """
    root = Path(root).expanduser()
    files = {path.name: path for path in sorted(root.rglob("*")) if path.name in READERS}
    if not files:
        raise FileNotFoundError(f"{root} holds no people's judgements: it needs one of {', '.join(READERS)}.")
    images, read = _Images(root), {}
    for file, path in files.items():
        name, reader = READERS[file]
        try:
            read.setdefault(name, []).extend(reader(path, images))
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path} is not of its published form ({error!r}): fetch it again.") from error
    return read


def _lines(path: Path) -> Iterator[list[str]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip():
            yield line.rstrip().split("\t")


def _beside(path: Path, name: str, what: str) -> Path:
    """A file that must lie beside another, which lacks what it holds."""
    file = path.with_name(name)
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: it holds {what} of {path.name}.")
    return file


def _flickr8k(path: Path, images: _Images, ratings: int) -> Iterator[Rated]:
    """Pairs whose caption is one of the image's own are left out, as is usual (Hessel et al. 2021, appendix A)."""
    by_id = dict(row[:2] for row in _lines(_beside(path, "Flickr8k.token.txt", "the captions")))
    of_image = defaultdict(set)
    for name, text in by_id.items():
        of_image[name.partition("#")[0]].add(text)
    for image, caption, *judged in _lines(path):
        text, values = by_id[caption], [float(judged[k]) for k in range(ratings)]
        if text not in of_image[image]:
            yield from (Rated(images[image], text, value) for value in values)


def _composite(path: Path, images: _Images) -> Iterator[Rated]:
    """The fourth column holds the image's address, its captions and as many ratings, 1 to 5, parted by semicolons."""
    with path.open(encoding="utf-8", newline="") as file:
        for row in list(csv.reader(file))[1:]:
            if len(row) < 4 or "http" not in row[3]:
                continue  # the last lines say how the collection was made
            address, *rest = row[3][row[3].index("http") :].split(";")
            count = len(rest) // 2
            pairs = zip(rest[:count], map(float, rest[count : 2 * count]), strict=True)
            yield from (Rated(images[address], text.strip(), rating) for text, rating in pairs)


def _pascal(path: Path, images: _Images) -> Iterator[Preferred]:
    """The caption that most of 48 votes prefer; a pair without a majority is left out."""
    votes = loadmat(_beside(path, "consensus_pascal.mat", "the votes on the pairs"))["triplets"][0]
    pairs = loadmat(path)
    for k, (pair, kind) in enumerate(zip(pairs["new_input"][0], pairs["category"][0], strict=True)):
        image, one, other = (str(part[0]) for part in list(pair)[:3])
        balance = sum(int(vote[3][0][0]) for vote in votes[k * PASCAL_VOTES : (k + 1) * PASCAL_VOTES])
        if balance:
            better, worse = (one, other) if balance > 0 else (other, one)
            yield Preferred(images[image], better.strip(), worse.strip(), PASCAL_KINDS[int(kind)])


def _foil(path: Path, images: _Images) -> Iterator[Preferred]:
    """Each caption with the one in which a word was exchanged, wherever both are there."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    names = {row["id"]: row["file_name"] for row in rows.get("images", [])}
    right = {row["id"]: row["caption"] for row in rows["annotations"] if row["foil_word"] == "ORIG"}
    for row in rows["annotations"]:
        if row["foil_word"] != "ORIG" and row["id"] in right:
            image = names.get(row["image_id"], f"COCO_val2014_{int(row['image_id']):012d}")
            yield Preferred(images[image], right[row["id"]].strip(), row["caption"].strip(), "word exchanged")


READERS: dict[str, tuple[str, Callable]] = {
    # Three ratings a pair, 1 (does not describe it) to 4 (describes it); the share of yeses of at least three people.
    "ExpertAnnotations.txt": ("Flickr8k-Expert", partial(_flickr8k, ratings=3)),
    "CrowdFlowerAnnotations.txt": ("Flickr8k-CF", partial(_flickr8k, ratings=1)),
    **dict.fromkeys(COMPOSITE, ("Composite", _composite)),
    "pair_pascal.mat": ("Pascal-50S", _pascal),
    "foilv1.0_test_2017.json": ("FOIL", _foil),
}
TAU = {"Flickr8k-CF": "b"}  # variant of Kendall's tau by which a collection is read (Hessel et al. 2021); else c


def agreement(name: str, scores: Sequence[float] | np.ndarray, judged: Sequence[Rated]) -> float:
    """Kendall's tau of a judge's scores and people's ratings, in [-1, 1]: tau-c, of Flickr8k-CF tau-b."""
    return float(kendalltau(scores, [one.rating for one in judged], variant=TAU.get(name, "c")).statistic)


def accuracy(better: Sequence[float] | np.ndarray, worse: Sequence[float] | np.ndarray) -> np.ndarray:
    """1 where a judge prefers the caption that people do, 0.5 where it cannot tell: `(pairs,)`."""
    return (np.sign(np.subtract(better, worse)) + 1) / 2
