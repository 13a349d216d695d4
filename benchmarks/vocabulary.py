"""The vocabulary map as a gather, against the matrix of zeros and ones that it stands for (Appendix G).

One batch of the finetuning: token distributions of the captioner become expected embeddings of the generator, and the
gradient comes back to the distributions. Real vocabularies, the width of the published text encoder, random numbers.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer

from dfl_utils import provenance
from dfl_utils.connection import mapped_embeds
from dfl_utils.profile import MINI
from dfl_utils.vocabulary import VocabularyMap

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, default=160, help="tokens of a batch: 8 captions of 20")
    parser.add_argument("--width", type=int, default=768, help="of the generator's token embeddings (SD v1: 768)")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if min(options.positions, options.width, options.rounds) < 1:
        parser.error("positions, width and rounds are at least 1")
    places = MINI / "blip-base", MINI / "stable-diffusion" / "tokenizer"
    pair = [AutoTokenizer.from_pretrained(place, local_files_only=True) for place in places]
    index = VocabularyMap.make(*pair).index
    stream = torch.Generator().manual_seed(0)
    table = torch.randn(len(pair[1]), options.width, generator=stream)
    logits = torch.randn(options.positions, len(index), generator=stream)
    known = ways(index, table)
    warm = {name: way(logits.softmax(-1)) for name, way in known.items()}
    apart = {name: float((embeds - warm["gather"]).abs().max()) for name, embeds in warm.items()}
    rounds = {name: [] for name in known}
    for _ in range(options.rounds):  # side by side, so that a busy minute falls on all
        for name, way in known.items():
            rounds[name].append(seconds(way, logits))
    medians = {name: [statistics.median(column) for column in zip(*own, strict=True)] for name, own in rounds.items()}
    for name, (there, back) in medians.items():
        print(f"{name:16}{there:8.3f} s there{back:8.3f} s there and back   apart {apart[name]:.1e}")
    record = {
        "date": date.today().isoformat(),
        "machine": provenance.machine() | {"threads": torch.get_num_threads()},
        "versions": provenance.versions(),
        "options": vars(options),
        "vocabularies": [len(index), len(table)],
        "dense matrix, GiB": round(dense_bytes(index, table) / GIB, 2),
        "index, GiB": round(index.numel() * 8 / GIB, 6),
        "seconds there": {name: round(there, 4) for name, (there, _) in medians.items()},
        "seconds there and back": {name: round(back, 4) for name, (_, back) in medians.items()},
        "rounds": {name: [round(back, 4) for _, back in own] for name, own in rounds.items()},
        "largest difference from the gather": apart,
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
