"""One file from the web, whole or not at all: resumed after a break, checked by size and hash, then put in place."""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import httpx2

TRIES = 5  # in a row without a new byte
PAUSE = 1.0  # seconds before the second of them; each further one waits twice as long
# Of a body as it is stored: a compressed one cannot be resumed.
HEADERS = {"Accept-Encoding": "identity", "User-Agent": "dfl-utils"}

Progress = Callable[[int], object]  # told of bytes as they come


class Refused(OSError):
    """A server says no, and would say it again."""


def client() -> httpx2.Client:
    """A client that follows redirects and gives up on a silent server after half a minute."""
    return httpx2.Client(follow_redirects=True, timeout=30.0, headers=HEADERS)


def fetch(
    url: str,
    path: Path,
    *,
    web: httpx2.Client,
    size: int | None = None,
    sha256: str | None = None,
    md5: str | None = None,
    progress: Progress = lambda count: None,
) -> str:
    """Download `url` to `path`, going on where an earlier call was broken off.

    What has come lies beside `path` as `<name>.part` until it is whole. A server that cannot resume, or whose file has
    changed since, is read from the start; so is one that names no version of its file, unless a hash is known.

    Args:
        url: http or https.
        path: the file; its folder is made.
        web: see `client`.
        size: bytes that it should have, if known.
        sha256, md5: hexadecimal, if known.
        progress: is told of the bytes that came, those of earlier calls too; of fewer than none after a fresh start.

    Returns:
        The file's SHA-256.

    Raises:
        Refused: the server has no such file, or does not give it.
        OSError: the connection kept breaking, or the disk is full.
        ValueError: what came is not what was published; it is thrown away.
    """
    part, stamp = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.version")
    path.parent.mkdir(parents=True, exist_ok=True)
    progress(_length(part))
    tried = 0
    while True:
        before = _length(part)
        try:
            if before == 0 or before != size:
                _stream(web, url, part, stamp, bool(sha256 or md5), progress)
            break
        except httpx2.TransportError as error:
            tried = 0 if _length(part) > before else tried + 1
            if tried >= TRIES:
                raise OSError(
                    f"The connection to {url} broke {TRIES} times in a row ({error or type(error).__name__}): "
                    f"{_length(part):,} bytes are kept, and the same command goes on from there."
                ) from error
            time.sleep(PAUSE * 2 ** max(tried - 1, 0))
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:  # redirects without end, say
            raise Refused(f"{url} cannot be read ({error}): fetch it by hand.") from error
    found = _check(part, url, size, sha256, md5)
    part.replace(path)
    stamp.unlink(missing_ok=True)
    return found


def _stream(web: httpx2.Client, url: str, part: Path, stamp: Path, hashed: bool, progress: Progress) -> None:
    """One request: append to `part` what it lacks, or write it anew where the server sends all."""
    start, headers = _length(part), {}
    if start and stamp.is_file():
        headers = {"Range": f"bytes={start}-", "If-Range": stamp.read_text(encoding="latin-1")}
    elif start and hashed:  # two versions of a file that were glued together would not pass
        headers = {"Range": f"bytes={start}-"}
    with web.stream("GET", url, headers=headers) as answer:
        if answer.status_code == 429 or answer.status_code >= 500:
            raise httpx2.TransportError(f"status {answer.status_code}")
        if answer.status_code == 416:  # more than the server has
            part.unlink()
            progress(-start)
            raise httpx2.TransportError("the file has changed")
        if answer.status_code not in (200, 206):
            raise Refused(f"{url} answers {answer.status_code}: ask for it with a browser, or put the file in by hand.")
        resumed = answer.status_code == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        if not resumed and answer.status_code == 206:
            raise Refused(f"{url} answers with another part of the file than it was asked for: fetch it by hand.")
        if not resumed:
            part.write_bytes(b"")  # before the new stamp: an old beginning must never pass for the new file's
            progress(-start)
            _note(stamp, answer)
        expected = int(answer.headers["Content-Length"]) if "Content-Length" in answer.headers else None
        came = 0
        with part.open("ab") as file:
            for chunk in answer.iter_raw():  # as it comes: what a chunk of a given size still gathers would be lost
                file.write(chunk)
                came += len(chunk)
                progress(len(chunk))
        if expected is not None and came < expected:
            raise httpx2.TransportError(f"it ended {expected - came:,} bytes early")


def _note(stamp: Path, answer: httpx2.Response) -> None:
    """Keep what names the version of a file: a strong ETag, or its date."""
    etag = answer.headers.get("ETag", "")
    version = etag if etag and not etag.startswith("W/") else answer.headers.get("Last-Modified")
    if version:
        stamp.write_text(version, encoding="latin-1")
    else:
        stamp.unlink(missing_ok=True)


def _check(part: Path, url: str, size: int | None, sha256: str | None, md5: str | None) -> str:
    """SHA-256 of a finished download; ValueError, and no file, where it is not what was published."""
    found = {"sha256": digest(part, "sha256")}
    wanted = {"bytes": size, "sha256": sha256, "md5": md5}
    found |= {"bytes": _length(part)} | ({"md5": digest(part, "md5")} if md5 else {})
    for name, value in wanted.items():
        if value is not None and found[name] != value:
            part.unlink()
            raise ValueError(
                f"{url} is not what was published: its {name} is {found[name]} and should be {value}; it was thrown "
                "away: run the same command again, and if that does not help, ask the publisher."
            )
    return found["sha256"]


def digest(path: Path, algorithm: str) -> str:
    """Hexadecimal hash of a file, read once."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _length(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
