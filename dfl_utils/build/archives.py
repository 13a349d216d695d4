"""Zip archives, unpacked as a stranger's: no path out of the folder, no link, nothing half-written in place."""

import shutil
import stat
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

CHUNK = 1 << 20


def unpack(archive: Path, folder: Path, members: Sequence[str], progress=lambda count: None) -> None:
    """Unpack some members of an archive into a folder.

    They are written beside their places first and moved when all are whole, so that a break leaves nothing that looks
    finished; the next call begins anew. Every member's CRC is checked.

    Args:
        archive: a zip file.
        folder: is made; what lies there under the same names is replaced file by file.
        members: files by their whole names, which land in `folder` under their last part; or folders, ending in a
            slash, which land there with all that is in them.
        progress: is told of bytes as they are written.

    Raises:
        ValueError: no zip file, a damaged one, a member that would leave the folder or is a link, or one that is
            missing.
        OSError: the disk is too small, or cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    staging = folder / f".unpacking-{archive.stem}"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as content:
            chosen = _chosen(content, archive, members)
            _check_room(folder, sum(info.file_size for info, _ in chosen), archive)
            for info, place in chosen:
                _extract(content, info, staging / place, progress)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:  # the last: it is encrypted
        shutil.rmtree(staging, ignore_errors=True)
        raise ValueError(f"{archive} is damaged or no zip file ({error}): delete it and fetch it again.") from error
    _move(staging, folder)


def _chosen(content: zipfile.ZipFile, archive: Path, members: Sequence[str]) -> list[tuple[zipfile.ZipInfo, str]]:
    """Members to unpack, with their places below the folder; every name of the archive is checked first."""
    for info in content.infolist():
        path = PurePosixPath(info.filename)
        if path.is_absolute() or ".." in path.parts or "\\" in info.filename or ":" in path.parts[0]:
            raise ValueError(f"{archive} holds {info.filename!r}, which would leave its folder: do not trust it.")
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ValueError(f"{archive} holds {info.filename!r}, which is a link or no plain file: do not trust it.")
    files = [info for info in content.infolist() if not info.is_dir()]
    chosen = []
    for member in members:
        found = [info for info in files if info.filename == member or (member[-1] == "/" and _in(info, member))]
        if not found:
            raise ValueError(f"{archive} lacks {member}: it is not the archive that was published.")
        chosen += [(info, info.filename if member[-1] == "/" else Path(member).name) for info in found]
    return chosen


def _in(info: zipfile.ZipInfo, folder: str) -> bool:
    return info.filename.startswith(folder)


def _check_room(folder: Path, needed: int, archive: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(f"{folder} has {free:,} bytes free and {archive.name} unpacks to {needed:,}: make room.")


def _extract(content: zipfile.ZipFile, info: zipfile.ZipInfo, place: Path, progress) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    with content.open(info) as source, place.open("wb") as target:
        while chunk := source.read(CHUNK):
            target.write(chunk)
            progress(len(chunk))


def _move(staging: Path, folder: Path) -> None:
    """Put each finished top part in place: a folder that is not there yet by one rename."""
    for part in sorted(staging.iterdir()):
        place = folder / part.name
        if not place.exists() or part.is_file():
            part.replace(place)
            continue
        for path in sorted(part.rglob("*")):
            if path.is_file():
                target = place / path.relative_to(part)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.replace(target)
    shutil.rmtree(staging)
