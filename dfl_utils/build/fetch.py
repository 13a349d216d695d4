"""`dfl fetch`: bring what `dfl doctor` misses, whole and checked, and go on where a broken call stopped."""

import io
import json
import re
import shutil
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout
from PIL import Image
from tqdm import tqdm

from dfl_utils.build import archives, catalogue, doctor, download, hub, inventory
from dfl_utils.build.doctor import Machine, disks
from dfl_utils.build.web_files import File
from dfl_utils.world import annotations
from dfl_utils.world.profile import Profile

IMAGES_AT_A_TIME = 8


def run(
    profile: Profile,
    only: Sequence[str] = (),
    to: Path | None = None,
    accept: Sequence[str] = (),
    endpoint: str | None = None,
    machine: Machine | None = None,
) -> list[str]:
    """Fetch what is missing of a profile's models and files.

    Args:
        profile: what is needed.
        only: ids of models and names of files, or the head of several names (`coco`, `nocaps`); none: all.
        to: folder for everything, in place of the profile's.
        accept: licences that the reader accepts; noted beside the models.
        endpoint: address of a hub; None: $HF_ENDPOINT or the public one.
        machine: whose disks are asked.

    Returns:
        One line for each thing that was asked for.

    Raises:
        ValueError: an unknown name, a licence that is not accepted, a broken folder in the way, or a file that is not
            what was published.
        OSError: a disk that is too small, said before anything is fetched; a server or hub that does not answer.
    """
    profile = profile if to is None else moved(profile, Path(to))
    models, files = _chosen(profile, only)
    root = Path(profile.models_root or profile.data_root)
    missing = [model for model in models if _is_missing(profile, model)]
    lacking = [file for file in files if inventory.file_flaw(profile, file)]
    _note_licences(profile, accept)
    _check_licences(profile, missing)
    if not missing and not lacking:
        return [*_here(models, files, profile), "nothing is missing"]
    root.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(root / ".fetch.lock", timeout=0):
            locked = _commits(root)
            plan = [hub.describe(model, model.revision or locked.get(model.id), endpoint) for model in missing]
            _check_room(profile, root, plan, lacking, machine or Machine())
            for snapshot in plan:
                _note(root / "commits.json", locked | {snapshot.model.id: snapshot.commit})
                locked = _commits(root)
                hub.fetch(snapshot, root, endpoint)
            for file in lacking:
                _fetch_file(profile, file)
    except Timeout:
        raise OSError(f"Another `dfl fetch` is at work in {root}: wait for it, or end it.") from None
    return _here(models, files, profile)


def moved(profile: Profile, folder: Path) -> Profile:
    """The profile with its data and models in one folder; `DFL_DATA` set to it finds them."""
    vectors = profile.word_vectors and folder / "models" / Path(profile.word_vectors).name
    return replace(
        profile,
        data_root=folder,
        coco_root=None,
        nocaps_root=None,
        models_root=folder / "models",
        word_vectors=vectors,
    )


def _chosen(profile: Profile, only: Sequence[str]) -> tuple[list[catalogue.Model], list[File]]:
    models, files = catalogue.models(profile), catalogue.files(profile)
    if not only:
        return models, files
    names = [*(model.id for model in models), *(file.name for file in files)]
    for name in only:
        if name not in names and not any(known.startswith(f"{name}-") for known in names):
            known = ", ".join(names) or "no file of the web"
            raise ValueError(f"The profile {profile.name!r} needs no {name!r}: it needs {known}.")
    heads = tuple(f"{name}-" for name in only)
    return (
        [model for model in models if model.id in only],
        [file for file in files if file.name in only or file.name.startswith(heads)],
    )


def _is_missing(profile: Profile, model: catalogue.Model) -> bool:
    """Whether a model has to be fetched; ValueError where a broken folder of its name is in the way."""
    folder = inventory.model_folder(profile, model)
    flaw = inventory.model_flaw(folder) if folder else None
    if flaw and Path(profile.locate(model.id)).is_dir():  # not the hub's cache: a mirror goes before that
        raise ValueError(f"{folder} {flaw}: delete the folder and run the same command again.")
    return folder is None or flaw is not None


def _note_licences(profile: Profile, accept: Sequence[str]) -> None:
    known = {model.licence for model in catalogue.MODELS.values() if model.accept}
    for licence in accept:
        if licence not in known:
            raise ValueError(f"No model asks for the licence {licence!r}: choose from {', '.join(sorted(known))}.")
    if accept:
        _note(doctor.note_of_licences(profile), sorted(doctor.accepted(profile) | set(accept)))


def _check_licences(profile: Profile, missing: Sequence[catalogue.Model]) -> None:
    noted = doctor.accepted(profile)
    for model in missing:
        if model.accept and model.licence not in noted:
            raise ValueError(
                f"{model.id} has a licence that restricts its use: read it at {model.page}, then add "
                f"`--accept {model.licence}`."
            )


def _commits(root: Path) -> dict[str, str]:
    """Commits that earlier calls fetched of ids that the profile does not pin."""
    path = root / "commits.json"
    return annotations.read_json(path) if path.is_file() else {}


def _note(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.draft")
    draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    draft.replace(path)


def _check_room(profile: Profile, root: Path, plan: list[hub.Snapshot], files: list[File], machine: Machine) -> None:
    """OSError where a disk has less room than what goes to it will take, counted by the hub's own sizes."""
    needed: dict[Path, int] = defaultdict(int)
    for snapshot in plan:
        needed[root] += max(0, snapshot.bytes - inventory.started(profile, snapshot.model))
    for file in files:
        to_come = max(0, (file.bytes or 0) - inventory.started(profile, file))
        needed[file.places(profile)[0].parent] += to_come + file.unpacked
    for disk in disks(needed, machine):
        if disk.free < disk.needed:
            raise OSError(
                f"The disk of {disk.folder} has {disk.free / 1e9:.1f} GB free of the {disk.needed / 1e9:.1f} GB that "
                "are still to come: make room, or give a larger one by `--to FOLDER`."
            )


def _fetch_file(profile: Profile, file: File) -> None:
    place = file.places(profile)[0]
    if file.name == "nocaps-images":
        return _fetch_images(profile, file, file.found(profile) or place)
    receipts = Path(profile.models_root or profile.data_root) / "sha256.json"
    known = annotations.read_json(receipts) if receipts.is_file() else {}
    sha256 = file.sha256 or (None if file.md5 else known.get(file.url))
    target = file.download(profile)
    if not (
        file.members and target.is_file()
    ):  # an archive that lies there is whole: only its unpacking was broken off
        with _bar(file.name, file.bytes) as bar, download.client() as web:
            found = download.fetch(
                file.url, target, web=web, size=file.bytes, sha256=sha256, md5=file.md5, progress=bar.update
            )
        _note(receipts, known | {file.url: found})
    if file.members:
        with _bar(f"{file.name}, unpacking", file.unpacked or None) as bar:
            archives.unpack(target, place.parent, file.members, bar.update)
        target.unlink()


def _bar(text: str, total: int | None) -> tqdm:
    return tqdm(desc=text, total=total, unit="B", unit_scale=True, unit_divisor=1000)


def _fetch_images(profile: Profile, file: File, folder: Path) -> None:
    """The images that NoCaps' captions name, each decoded once; those that are there are left alone."""
    captions = next(other for other in catalogue.files(profile) if other.name == "nocaps-captions").found(profile)
    if captions is None:
        raise FileNotFoundError("The images of NoCaps are named by its captions: fetch nocaps-captions first.")
    missing = [(url, folder / name) for name, url in _addresses(captions) if not (folder / name).is_file()]
    with download.client() as web, ThreadPoolExecutor(IMAGES_AT_A_TIME) as pool:
        jobs = [pool.submit(_fetch_image, web, url, path) for url, path in missing]
        try:
            for job in tqdm(jobs, desc=file.name, unit="image"):
                job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    shutil.rmtree(folder / ".partial", ignore_errors=True)


def _addresses(captions: Path) -> list[tuple[str, str]]:
    """File name and address of each image; ValueError where one is no plain name, or no address of the web."""
    found = []
    for record in annotations.read_json(captions)["images"]:
        name, url = str(record.get("file_name")), str(record.get("coco_url"))
        if not re.fullmatch(r"\w[\w.-]*", name) or not re.match(r"https?://", url):
            raise ValueError(f"{captions} names an image {name!r} at {url!r}: fetch the file again.")
        found.append((name, url))
    return found


def _fetch_image(web, url: str, path: Path) -> None:
    raw = path.parent / ".partial" / path.name  # in place only when it can be decoded
    download.fetch(url, raw, web=web)
    try:
        with Image.open(io.BytesIO(raw.read_bytes())) as image:
            image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raw.unlink()
        raise ValueError(f"{url} is no image that can be decoded ({error}): run the same command again.") from error
    raw.replace(path)


def _here(models: Sequence[catalogue.Model], files: Sequence[File], profile: Profile) -> list[str]:
    lines = [f"{model.id}: {inventory.model_folder(profile, model)}" for model in models]
    return lines + [f"{file.name}: {file.found(profile)}" for file in files]
