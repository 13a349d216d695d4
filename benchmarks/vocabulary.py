"""The vocabulary map as a gather, against the matrix of zeros and ones that it stands for (Appendix G).

One batch of the finetuning: token distributions of the captioner become expected embeddings of the generator, and the
gradient comes back to the distributions. Real vocabularies, the width of the published text encoder, random numbers.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer

from dfl_utils.training.losses import mapped_embeds
from dfl_utils.training.vocabulary import VocabularyMap
from dfl_utils.world.profile import MINI

SPARE = 1.3  # times the matrix must be free: its product needs room as well
Way = Callable[[Tensor], Tensor]
GIB = 2**30


def free_memory() -> int:
    """Bytes that can be taken without swapping."""
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def dense_bytes(index: Tensor, table: Tensor) -> int:
    """Of a float32 matrix with a row for every captioner token and a column for every generator token."""
    return 4 * len(index) * len(table)


def ways(index: Tensor, table: Tensor) -> dict[str, Way]:
    """Distributions (N, V_captioner) -> expected embeddings (N, D), four times the same function."""
    rows = torch.arange(len(index))
    shape = len(table), len(index)
    sparse = torch.sparse_coo_tensor(torch.stack([index, rows]), torch.ones(len(index)), shape, check_invariants=True)
    sparse = sparse.coalesce()

    def added(probabilities: Tensor) -> Tensor:
        return probabilities.new_zeros(len(probabilities), len(table)).index_add(1, index, probabilities) @ table

    found = {
        "gather": lambda probabilities: mapped_embeds(probabilities, index, table),
        "index_add": added,
        "sparse matrix": lambda probabilities: torch.sparse.mm(sparse, probabilities.T).T @ table,
    }
    needed, free = SPARE * dense_bytes(index, table), free_memory()
    if needed > free:
        print(
            f"the dense matrix of {len(index):,} x {len(table):,} is left out: it wants {needed / GIB:.1f} GiB and "
            f"{free / GIB:.1f} GiB are free; run this again beside fewer programs."
        )
        return found
    matrix = torch.zeros(len(index), len(table))
    matrix[rows, index] = 1.0
    return found | {"dense matrix": lambda probabilities: probabilities @ matrix @ table}


def seconds(way: Way, logits: Tensor) -> tuple[float, float]:
    """Seconds of the way there, and there and back."""
    probabilities = logits.softmax(-1).requires_grad_()
    began = time.perf_counter()
    embeds = way(probabilities)
    there = time.perf_counter() - began
    embeds.sum().backward()
    return there, time.perf_counter() - began


def measure(positions: int = 160, width: int = 768, rounds: int = 5) -> tuple[dict, dict, tuple[int, int]]:
    """Way -> median seconds there, and there and back; its largest difference from the gather; both vocabularies."""
    places = MINI / "blip-base", MINI / "stable-diffusion" / "tokenizer"
    pair = [AutoTokenizer.from_pretrained(place, local_files_only=True) for place in places]
    index = VocabularyMap.make(*pair).index
    stream = torch.Generator().manual_seed(0)
    table = torch.randn(len(pair[1]), width, generator=stream)
    logits = torch.randn(positions, len(index), generator=stream)
    known = ways(index, table)
    warm = {name: way(logits.softmax(-1)) for name, way in known.items()}
    apart = {name: float((embeds - warm["gather"]).abs().max()) for name, embeds in warm.items()}
    found = {name: [] for name in known}
    for _ in range(rounds):  # side by side, so that a busy minute falls on all
        for name, way in known.items():
            found[name].append(seconds(way, logits))
    medians = {name: [statistics.median(column) for column in zip(*own, strict=True)] for name, own in found.items()}
    return medians, apart, (len(index), len(table))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, default=160, help="tokens of a batch: 8 captions of 20")
    parser.add_argument("--width", type=int, default=768, help="of the generator's token embeddings (SD v1: 768)")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if min(options.positions, options.width, options.rounds) < 1:
        parser.error("positions, width and rounds are at least 1")
    medians, apart, _ = measure(options.positions, options.width, options.rounds)
    for name, (there, back) in medians.items():
        print(f"{name:16}{there:8.3f} s there{back:8.3f} s there and back   apart {apart[name]:.1e}")


if __name__ == "__main__":
    main()
