"""What a page may tell of the machine that made it: no folder of it, no home or temporary folder of any, no secret."""

import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from dfl_utils.build.chapter import BuildFailed
from dfl_utils.store import provenance

# Not the end of a longer path or of a web address.
PATHS = r"(?<![\w.~$}-])(?:/home/|/Users/|/private/var/|/var/folders/|/tmp/|/root/|[A-Za-z]:\\+Users\\+)[\w.-]+"
OF_PATHS = ("/home/", "/Users/", "/private/var/", "/var/folders/", "/tmp/", "/root/", ":\\")  # looked for first
SYSTEM = ("/usr/", "/bin/", "/etc/", "/dev/", "/proc/", "/sys/")  # folders that everybody has
SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY", re.IGNORECASE)
TOKENS = r"\bhf_[A-Za-z0-9]{30,}|\bgh[opsur]_[A-Za-z0-9]{36,}"  # of Hugging Face and GitHub
OF_TOKENS = ("hf_", "gho_", "ghp_", "ghs_", "ghu_", "ghr_")
SHORTEST_SECRET = 8  # characters; a shorter one stands in any text
THIRD_PARTY = ("_static", "_sphinx_design_static")  # the theme's own, the same on every machine


def refuse(folder: Path, files: Iterable[Path]) -> None:
    """Raise BuildFailed at the first leak in files of a folder, naming the file and what it shows."""
    known, hidden = folders(), secrets()
    for path in files:
        text = path.read_bytes().decode("utf-8", errors="replace")  # pictures, too: of their bytes the plain letters
        if path.suffix == ".ipynb":
            text = text.replace("\\n", "\n")
        where = path.relative_to(folder).as_posix()
        for shown in leaks(text, known):
            raise BuildFailed(f"{where} shows the path {shown!r}: print something else there, and run it again.")
        if any(secret in text for secret in hidden) or (any(m in text for m in OF_TOKENS) and re.search(TOKENS, text)):
            raise BuildFailed(f"{where} shows a secret or an access token: print nothing of it, and run it again.")


def leaks(text: str, known: Sequence[str]) -> Iterator[str]:
    """Paths in a text that are known folders of this machine, or a home or temporary folder of any."""
    if there := [re.escape(place) for place in known if place in text]:
        yield from re.findall(rf"(?<![\w.~$}}/-])(?:{'|'.join(there)})(?![\w.-])", text)
    if any(mark in text for mark in OF_PATHS):
        yield from re.findall(PATHS, text)


def folders() -> list[str]:
    """The repository, home, temporary folder, packages, and whatever folder a variable names (DFL_STORE, HF_HOME)."""
    places = [str(provenance.ROOT), str(Path.home()), tempfile.gettempdir(), sys.prefix]
    places += [value for value in os.environ.values() if value.startswith("/") and os.pathsep not in value]
    found = {place.rstrip("/") for place in places if place.count("/") > 1 and not place.startswith(SYSTEM)}
    return sorted(found, key=len, reverse=True)


def secrets() -> list[str]:
    """Values of the environment's variables that are called secrets."""
    named = (value for name, value in os.environ.items() if SECRET_NAME.search(name))
    return [value for value in named if len(value) >= SHORTEST_SECRET and not Path(value).exists()]


def pages(site: Path) -> list[Path]:
    """The files of a rendered site that say something of the book; the theme's own are left out."""
    found = (path for path in sorted(site.rglob("*")) if path.is_file())
    return [path for path in found if path.relative_to(site).parts[0] not in THIRD_PARTY]
