"""Models of the Hugging Face hub, fetched whole into a mirror: one commit, safetensors alone, every hash checked."""

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when huggingface_hub is first imported

import httpx2
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import filter_repo_objects

from dfl_utils.build.catalogue import ALLOW, IGNORE, Model
from dfl_utils.build.download import digest


@dataclass(frozen=True)
class Published:
    """A file of a repository as the hub describes it; `blob` is git's hash, `sha256` is there for large files."""

    path: str
    size: int
    blob: str
    sha256: str | None


@dataclass(frozen=True)
class Snapshot:
    """What is fetched of a model: its commit and files."""

    model: Model
    commit: str
    files: tuple[Published, ...]

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.files)


def describe(model: Model, commit: str | None, endpoint: str | None = None) -> Snapshot:
    """Ask the hub for the commit and the files of a model.

    Args:
        model: what is asked for.
        commit: the one to use; None: the one that is current.
        endpoint: address of a hub; None: $HF_ENDPOINT or the public one.

    Raises:
        OSError: the hub does not answer, or not for us.
        ValueError: the commit holds no safetensors, or a path that would leave the folder.
    """
    api = HfApi(endpoint=endpoint)
    try:
        commit = commit or api.model_info(model.id).sha
        entries = [
            Published(entry.path, entry.size, entry.blob_id, entry.lfs.sha256 if entry.lfs else None)
            for entry in api.list_repo_tree(model.id, recursive=True, revision=commit)
            if isinstance(entry, RepoFile)
        ]
    except (HfHubHTTPError, httpx2.HTTPError) as error:
        raise _refusal(model, commit, error) from error
    wanted = filter_repo_objects(
        entries, allow_patterns=ALLOW, ignore_patterns=[*IGNORE, *model.ignore], key=lambda entry: entry.path
    )
    files = tuple(wanted)
    if stray := [file.path for file in files if file.path.startswith("/") or ".." in file.path.split("/")]:
        raise ValueError(f"{model.id} names a file {stray[0]!r}, which would leave its folder: do not trust it.")
    if not any(file.path.endswith(".safetensors") for file in files):
        raise ValueError(
            f"{model.id} at {commit[:7]} holds no safetensors weights, and pickles are not loaded: name a commit that "
            f"holds them in the profile's `revisions` (see the conversions at {model.page}/discussions), or download "
            "the pickles by hand, write them anew by `dfl convert` and name that folder."
        )
    return Snapshot(model, commit, files)


def fetch(snapshot: Snapshot, root: Path, endpoint: str | None = None) -> Path:
    """Download a model into `root/<id>`, which appears when every file of it has its published size and hash.

    Args:
        snapshot: see `describe`.
        root: folder of the mirrors; what is under way lies in its `.partial`, and a later call goes on with it.
        endpoint: as for `describe`.

    Raises:
        OSError: the hub does not answer, or the disk is full.
        ValueError: a file is not what was published; it is thrown away.
    """
    model, target = snapshot.model, root / snapshot.model.id
    partial = root / ".partial" / f"{model.id.replace('/', '--')}-{snapshot.commit[:12]}"
    partial.mkdir(parents=True, exist_ok=True)
    try:
        snapshot_download(
            model.id,
            revision=snapshot.commit,
            local_dir=partial,
            allow_patterns=[file.path for file in snapshot.files],
            endpoint=endpoint,
        )
    except (HfHubHTTPError, httpx2.HTTPError) as error:
        raise _refusal(model, snapshot.commit, error) from error
    for file in snapshot.files:
        _check(partial, file, model)
    shutil.rmtree(partial / ".cache", ignore_errors=True)  # the library's own notes
    target.parent.mkdir(parents=True, exist_ok=True)
    partial.rename(target)
    return target


def _check(partial: Path, file: Published, model: Model) -> None:
    path = partial / file.path
    if not path.is_file():
        raise OSError(f"{file.path} of {model.id} did not come: run the same command again.")
    if path.stat().st_size != file.size or (digest(path, "sha256") != file.sha256 if file.sha256 else
                                            _git_hash(path) != file.blob):  # fmt: skip
        path.unlink()
        (partial / ".cache" / "huggingface" / "download" / f"{file.path}.metadata").unlink(missing_ok=True)
        raise ValueError(
            f"{file.path} of {model.id} is not what was published (its size or hash is another); it was thrown away: "
            "run the same command again."
        )


def _git_hash(path: Path) -> str:
    """Git's name of a file's content (https://git-scm.com/book/en/v2/Git-Internals-Git-Objects)."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _refusal(model: Model, commit: str | None, error: Exception) -> OSError:
    if isinstance(error, GatedRepoError):
        said = f"{model.id} is given to those alone who accept its licence: do so at {model.page}, then `hf auth login`"
    elif isinstance(error, RevisionNotFoundError):
        said = f"{model.id} has no commit {commit}: name another in the profile's `revisions`"
    elif isinstance(error, RepositoryNotFoundError):
        said = f"The hub has no model {model.id}, or not for you: check the id, or `hf auth login`"
    else:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        said = f"The hub does not answer for {model.id} ({first}): what has come is kept, run the same command again"
    return OSError(f"{said}.")
