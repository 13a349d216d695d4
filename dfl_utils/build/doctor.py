"""`dfl doctor`: whether this machine could run a profile's experiment, and for each gap the step that mends it.

It reads folders, headers and sizes, and asks a run's own checks; takes seconds, downloads nothing, opens no connection
and reads no weights.
"""

import importlib.metadata
import os
import re
import shlex
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from dfl_utils.build import catalogue
from dfl_utils.build.catalogue import File, Model
from dfl_utils.store import provenance
from dfl_utils.store.store import default_root
from dfl_utils.world import data
from dfl_utils.world.annotations import NOCAPS, Example
from dfl_utils.world.profile import PROFILES, Profile, check_device

GIB = 2**30
GPU_MEND = "run on a machine with such a GPU and torch's build for its driver, or choose the profile 'mini'"
DISK_MEND = "make room, or set DFL_DATA, DFL_COCO, DFL_NOCAPS or DFL_MODELS to a folder of a larger disk"


class Machine:
    """The machine under us: GPUs and room on its disks; a test puts another in its place."""

    def gpus(self) -> list[tuple[str, int]]:
        """Name and memory in bytes of each GPU that torch sees."""
        import torch

        found = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
        return [(gpu.name, gpu.total_memory) for gpu in found]

    def disk(self, path: Path) -> tuple[int, int]:
        """Free bytes where a folder is or would be made, and a number for its disk."""
        there = _existing(path)
        return shutil.disk_usage(there).free, there.stat().st_dev

    def can_write(self, path: Path) -> bool:
        """Whether a folder can be written, or made."""
        return os.access(_existing(path), os.W_OK | os.X_OK)


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())


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


def _finding(what: str, lacking: str | None, mend: str) -> Finding:
    return Finding(f"{what} {lacking}", mend) if lacking else Finding(what)


def _asked(what: str, check: Callable[..., object], *arguments) -> Finding:
    """What a run's own check says: its sentence ends with the mend."""
    try:
        check(*arguments)
    except (ValueError, OSError) as error:
        what, mend = re.fullmatch(r"(.*?)(?:[:;] ([^:;]*?))?\.?", " ".join(str(error).split())).groups()
        return Finding(what, mend or "give another")
    return Finding(what)


def examine(profile: Profile, machine: Machine | None = None, purpose: str = "book") -> list[Finding]:
    """Everything that a purpose of `catalogue.ROLES` needs of this machine, the profile being such; gaps and all."""
    return list(dict.fromkeys(_findings(profile, machine or Machine(), purpose)))


def _findings(profile: Profile, machine: Machine, purpose: str) -> Iterator[Finding]:
    from dfl_utils.models import checkpoint, generator  # torch takes seconds, and `dfl fetch` does without

    yield _gpu(profile, machine, catalogue.GPU_MEMORY[purpose])
    yield _asked(f"dtype {profile.dtype}", checkpoint.inference_dtype, profile)
    yield _asked(f"scheduler {profile.scheduler}", generator.scheduler_class, profile.scheduler)
    yield from _folders(profile, purpose)
    yield from _models(profile, purpose)
    for file in catalogue.files(profile, purpose):
        lacking, where = file.flaw(profile), file.found(profile) or file.place(profile)
        yield _finding(file.name, lacking and f"{lacking}: {where}", f"{command(profile)} --only {file.name}")
    if purpose == "book":
        yield from _data(profile)
    yield from room(profile, missing(profile, purpose), machine)
    lacking = None if machine.can_write(default_root()) else "cannot be written"
    yield _finding(f"run store {default_root()}", lacking, "set DFL_STORE to a folder of yours")


def command(profile: Profile) -> str:
    """The command line that fetches for the same profile, with its replaced fields."""
    words = ["dfl", "fetch", "--profile", profile.name]
    for field in fields(Profile):
        value = getattr(profile, field.name)
        if value != getattr(PROFILES[profile.name], field.name) and isinstance(value, str | int | float | Path):
            words += ["-p", field.name, str(value)]
    return shlex.join(words)


def _gpu(profile: Profile, machine: Machine, needed: int) -> Finding:
    if not profile.device.startswith("cuda"):
        return _asked(f"device {profile.device}", check_device, profile)
    found = machine.gpus()
    largest = max((memory for _, memory in found), default=0)
    said = f"the largest GPU has {largest / GIB:.0f} GiB of {needed / GIB:.0f} GiB"
    none = f"torch {importlib.metadata.version('torch')} sees no GPU"  # +cpu: it never will
    return Finding(said if found else none, GPU_MEND if largest < needed else "")


def _kind(what: str, profile: Profile, folder: Path, roles: Iterable[str]) -> Iterator[Finding]:
    """Whether a folder holds a model of the kind that each role asks for."""
    from dfl_utils.models import workshop

    for role in roles:
        yield _asked(what, workshop.check, replace(profile, **{role: str(folder)}), role)


def _folders(profile: Profile, purpose: str) -> Iterator[Finding]:
    """Models that are named by a folder."""
    for role, name in catalogue.named(profile, purpose):
        if profile.offline or catalogue.is_folder(name):
            found = _asked(f"model {name}", profile.locate, name)
            folder = Path(profile.locate(name)) if found.ok else Path(name)
            lacking = catalogue.model_flaw(folder) if folder.is_dir() else "is missing"
            if found.ok and lacking:
                mend = provenance.mend(folder) if folder.is_dir() else "give a folder that is there"
                yield _finding(found.what, lacking, mend)
            else:
                yield from [found] if not found.ok else _kind(found.what, profile, folder, [role])


def _models(profile: Profile, purpose: str) -> Iterator[Finding]:
    """Models that are named by an id of the hub, and licences that fetching them asks to accept."""
    for model in catalogue.models(profile, purpose):
        lacking, mend = model.flaw(profile), f"{command(profile)} --only {model.name}"
        what = f"model {model.name}{f' at {model.revision[:7]}' if model.revision else ''}"
        roles = [role for role, name in catalogue.named(profile, purpose) if name == model.name]
        yield from [_finding(what, lacking, mend)] if lacking else _kind(what, profile, model.found(profile), roles)
        if lacking and model.accept:
            accept = f"read it at {model.page}, then {mend} --accept {model.licence}"
            yield Finding(f"licence {model.licence} of {model.name} asks to be accepted", accept)


def _data(profile: Profile) -> Iterator[Finding]:
    """The data sets by the very readers of a run, once their files are there: every image against its annotation."""
    if profile.data_writer and not Path(profile.data_root).is_dir():
        yield Finding(f"data are missing: {profile.data_root}", profile.data_command)
        return
    flawed = {one.name.split("-")[0] for one in missing(profile)}
    for dataset, splits in {"coco": ("train", "val", "test"), "nocaps": ("overall",)}.items():
        if dataset not in flawed:  # said above
            yield _data_set(profile, dataset, splits)


def _data_set(profile: Profile, dataset: str, splits: Sequence[str]) -> Finding:
    try:
        found = {split: data.load(profile, dataset, split) for split in splits}
        counts = {split: len(examples) for split, examples in found.items()}
        if dataset == "nocaps" and profile.data_writer is None:
            _check_domains(found["overall"], profile.dataset_root(dataset))
        return Finding(f"{dataset}: {', '.join(f'{count:,} images of {split}' for split, count in counts.items())}")
    except (ValueError, OSError) as error:
        what, _, _ = str(error).partition(f"; to get the data: {profile.data_command}")
        mend = profile.data_command if profile.data_writer else command(profile)
        mend = f"delete the file or folder that it names, then {mend}"
        if profile.data_writer and not Path(profile.dataset_root(dataset)).is_relative_to(profile.data_root):
            mend = f"bring it there, or leave {dataset}_root out"  # nothing here writes to a folder of one's own
        return Finding(f"{dataset}: {what}", mend)


def _check_domains(examples: Sequence[Example], root: Path) -> None:
    """ValueError where all of NoCaps' images are there, and not in its domains: such a file circulates."""
    counts = Counter(example.domain for example in examples)
    found, wanted = (", ".join(f"{c[name]:,} {name}" for name in NOCAPS) for c in (counts, NOCAPS))
    if len(examples) == sum(NOCAPS.values()) and found != wanted:
        raise ValueError(f"the captions in {root} have {found} of the domains, and NoCaps has {wanted}")


def room(profile: Profile, wanted: Iterable[Model | File], machine: Machine) -> Iterator[Finding]:
    """Of each disk that these models and files would come to: whether it has the room."""
    needed, free = Counter(), {}
    for one in wanted:
        folder = one.place(profile).parent
        bytes_free, disk = machine.disk(folder)
        free.setdefault(disk, (folder, bytes_free))
        needed[disk] += one.to_come(profile)
    for disk, (folder, count) in free.items():
        to_come = f"about {needed[disk] / 1e9:.1f} GB are still to come to the disk of {folder}"
        yield Finding(f"{to_come}, {count / 1e9:.1f} GB are free", DISK_MEND if count < needed[disk] else "")


def missing(profile: Profile, purpose: str = "book") -> list[Model | File]:
    """What of the published files is not there, or not whole."""
    needed = [*catalogue.models(profile, purpose), *catalogue.files(profile, purpose)]
    return [one for one in needed if one.flaw(profile)]
