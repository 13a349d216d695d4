"""`dfl fetch`: bring what `dfl doctor` misses, whole and checked, and go on where a broken call stopped."""

import hashlib
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
from filelock import FileLock
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import http_backoff
from PIL import Image
from tqdm import tqdm

from dfl_utils.build import catalogue, doctor
from dfl_utils.build.catalogue import File, Model
from dfl_utils.world import annotations
from dfl_utils.world.profile import Profile

HEADERS = {"Accept-Encoding": "identity", "User-Agent": "dfl-utils"}  # a compressed body cannot be resumed
AGAIN = "run the same command again"


def run(profile: Profile, only: Sequence[str] = (), accept: Sequence[str] = (), purpose: str = "book") -> list[str]:
    """Fetch what is missing of a profile's models and files; gives one line for each thing that came.

    `only` has ids of models and names of files, and is empty for all that the purpose (of `catalogue.ROLES`) needs;
    `accept` licences that the reader accepts.

    Raises:
        ValueError: an unknown name, a licence that is not accepted, or a file that is not what was published.
        OSError: too small a disk, said before anything is fetched; a server that does not answer; another call at work.
    """
    wanted = _wanted(profile, only, purpose)
    _check_licences(wanted, accept)
    for disk in doctor.room(profile, wanted, doctor.Machine()):
        if not disk.ok:
            raise OSError(f"{disk.what}: {disk.mend}.")
    if not wanted:
        return ["nothing is missing"]
    root = Path(profile.data_root)
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".dfl-fetch.lock", timeout=0):
        return [f"{one.name}: {_fetch(profile, one)}" for one in wanted]


def _wanted(profile: Profile, only: Sequence[str], purpose: str) -> list[Model | File]:
    """What is missing, of all or of what is named."""
    known = [one.name for one in (*catalogue.models(profile, purpose), *catalogue.files(profile, purpose))]
    if unknown := [name for name in only if name not in known]:
        needed = ", ".join(known) or "nothing"
        raise ValueError(f"The profile {profile.name!r} needs no {unknown[0]!r}: it needs {needed}.")
    return [one for one in doctor.missing(profile, purpose) if not only or one.name in only]


def _check_licences(wanted: Sequence[Model | File], accept: Sequence[str]) -> None:
    known = {model.licence for model in catalogue.MODELS.values() if model.accept}
    if unknown := set(accept) - known:
        raise ValueError(f"No model asks for the licence {min(unknown)!r}: choose from {', '.join(sorted(known))}.")
    for model in wanted:
        if isinstance(model, Model) and model.accept and model.licence not in accept:
            mend = f"read it at {model.page}, then add `--accept {model.licence}`"
            raise ValueError(f"{model.name} has a licence that restricts its use: {mend}.")


def _fetch(profile: Profile, wanted: Model | File) -> Path:
    try:
        if isinstance(wanted, Model):
            return _fetch_model(profile, wanted)
        return _fetch_images(profile, wanted) if wanted.name == "nocaps-images" else _fetch_file(profile, wanted)
    except (httpx2.HTTPError, httpx2.InvalidURL, LocalEntryNotFoundError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise OSError(f"{wanted.name} cannot be had ({reason}): what has come is kept, {AGAIN}.") from error


def _fetch_model(profile: Profile, model: Model) -> Path:
    """A model's folder; marked as unfinished until every file in it has its published hash."""
    folder, mark = model.place(profile), model.under_way(profile)
    folder.mkdir(parents=True, exist_ok=True)
    mark.touch()
    chosen = {"allow_patterns": list(catalogue.ALLOW), "ignore_patterns": list(catalogue.IGNORE)}
    snapshot_download(model.name, revision=model.revision, local_dir=folder, **chosen)
    found = HfApi().verify_repo_checksums(model.name, revision=model.revision, local_dir=folder)
    for wrong in found.mismatches:
        _throw_away(folder / wrong["path"], f"{wrong['path']} of {model.name}")
    if flaw := catalogue.model_flaw(folder):
        raise ValueError(f"{model.name} {flaw}: name a commit that has it, in the profile's `revisions`, or a folder.")
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the library's own notes
    mark.unlink()
    return folder


def _throw_away(path: Path, name: str) -> None:
    path.unlink()
    raise ValueError(f"{name} is not what was published (its size or hash is another); it was thrown away: {AGAIN}.")


def _fetch_file(profile: Profile, file: File) -> Path:
    place, part = file.place(profile), file.under_way(profile)
    part.parent.mkdir(parents=True, exist_ok=True)
    if not (file.digest or file.members):  # nothing would tell that two versions were glued together
        part.unlink(missing_ok=True)
    _download(file, part)
    if file.bytes not in (None, part.stat().st_size) or (file.digest and not _has_digest(part, file.digest)):
        _throw_away(part, file.url)
    if not file.members:
        return part.replace(place)
    unpack(part, place.parent, file.members)
    part.unlink()  # last: as long as it is there, the archive counts as not unpacked
    return place


def _download(file: File, part: Path) -> None:
    """Append to `part` what it lacks of a file."""
    with part.open("ab") as there:
        try:
            http_get(file.url, there, resume_size=there.tell(), headers=HEADERS, displayed_filename=file.name)
        except HfHubHTTPError as error:
            if error.response.status_code != 416:  # there is no more of it
                raise


def _has_digest(path: Path, digest: str) -> bool:
    algorithm, _, wanted = digest.partition(":")
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest() == wanted


def _fetch_images(profile: Profile, file: File) -> Path:
    """The images that NoCaps' captions name, each decoded once; those that are there are left alone."""
    folder = file.found(profile) or file.place(profile)
    folder.mkdir(parents=True, exist_ok=True)
    captions = next(other for other in catalogue.files(profile) if other.name == "nocaps-captions").found(profile)
    if captions is None:
        raise FileNotFoundError("The images of NoCaps are named by its captions: fetch nocaps-captions first.")
    missing = {folder / name: url for name, url in _addresses(captions) if not (folder / name).is_file()}
    with ThreadPoolExecutor(8) as pool:
        jobs = pool.map(_fetch_image, missing.values(), missing)
        list(tqdm(jobs, desc=file.name, total=len(missing), unit="image"))
    return folder


def _addresses(captions: Path) -> Iterator[tuple[str, str]]:
    """File name and address of each image; ValueError where one is no plain name, or no address of the web."""
    for record in annotations.read_json(captions)["images"]:
        name, url = str(record.get("file_name")), str(record.get("coco_url"))
        if not re.fullmatch(r"\w[\w.-]*", name) or not re.match(r"https?://", url):
            raise ValueError(f"{captions} names an image {name!r} at {url!r}: fetch the file again.")
        yield name, url


def _fetch_image(url: str, path: Path) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(http_backoff("GET", url, timeout=30.0).raise_for_status().content)
    try:
        with Image.open(part) as image:
            image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{url} is no image that can be decoded ({error}): {AGAIN}.") from error
    part.replace(path)


def unpack(archive: Path, folder: Path, members: Sequence[str]) -> None:
    """Unpack some members of a zip; `zipfile` checks their CRC, makes no links and lets none out of the folder.

    Files land in `folder` under the last part of their names; a member that ends in a slash is a folder, and lands
    there with all that is in it. What lies there under the same names is replaced.
    ValueError: a member that is missing; no zip or a damaged one, which is thrown away.
    """
    try:
        with zipfile.ZipFile(archive) as content:
            chosen = [info for member in members for info in _members(content, archive, member)]
            for info in tqdm(chosen, desc=f"unpacking {archive.name}", unit="file"):
                content.extract(info, folder)
    except (zipfile.BadZipFile, zlib.error, EOFError):
        _throw_away(archive, str(archive))


def _members(content: zipfile.ZipFile, archive: Path, member: str) -> list[zipfile.ZipInfo]:
    """A file or the files of a folder, named by their places below the folder that they are unpacked to."""
    chosen = [info for info in content.infolist() if not info.is_dir() and info.filename.startswith(member)]
    if not chosen:
        raise ValueError(f"{archive} lacks {member}: it is not the archive that was published.")
    for info in chosen if not member.endswith("/") else []:
        info.filename = Path(member).name
    return chosen
