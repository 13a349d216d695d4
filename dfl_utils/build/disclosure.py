"""What an executed chapter or a page may tell of the machine that made it: nothing.

Looked for in the text of every file: this machine's folders, user, host and e-mail address, the values of variables
that are called secrets, any machine's home and temporary folders, and access tokens.
"""

import os
import re
import socket
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from dfl_utils.build.chapter import BuildFailed
from dfl_utils.store import provenance

SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|AUTH", re.IGNORECASE)
SHORTEST_SECRET, SHORTEST_NAME = 8, 4  # characters; shorter ones stand in any text, or in a picture's bytes
# Of Hugging Face, GitHub, AWS, OpenAI and its likes; a key in PEM form.
TOKENS = (
    r"\b(?:hf_[A-Za-z0-9]{30,}|gh[opsur]_[A-Za-z0-9]{36,}|github_pat_\w{40,}|(?:AKIA|ASIA)[A-Z0-9]{16}\b"
    r"|sk-[\w-]{32,})|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
OF_TOKENS = ("hf_", *(f"gh{letter}_" for letter in "opsur"), "github_pat_", "AKIA", "ASIA", "sk-", "-----BEGIN ")
PASSWORD = r"https?://[^\s/:@\"'<>]+:[^\s/:@\"'<>]+@"  # in a URL
# Not the end of a longer path or of a web address.
PATHS = r"(?<![\w.~$}-])(?:/home/|/Users/|/private/var/|/var/folders/|/tmp/|/root/|[A-Za-z]:\\+Users\\+)[\w.-]+"
OF_PATHS = ("/home/", "/Users/", "/private/var/", "/var/folders/", "/tmp/", "/root/", ":\\")
SYSTEM = ("/usr/", "/bin/", "/etc/", "/dev/", "/proc/", "/sys/")  # folders that everybody has
THIRD_PARTY = ("_static", "_sphinx_design_static")  # the theme's own, the same on every machine

Pattern = tuple[Sequence[str], re.Pattern]  # texts of which a find holds one, and what finds it; the former are quick
Patterns = list[tuple[str, Pattern]]


def patterns() -> Patterns:
    """What must not be shown on this machine: what it is, and what finds it."""
    secrets = [value for name, value in os.environ.items() if SECRET_NAME.search(name) and not Path(value).exists()]
    return [
        ("an access token", (OF_TOKENS, re.compile(TOKENS))),
        ("an access token", (("@",), re.compile(PASSWORD))),
        ("a secret of the environment", _any_of(value for value in secrets if len(value) >= SHORTEST_SECRET)),
        ("a folder of this machine", _any_of(_folders(), r"(?<![\w.~$}/-])(?:{})(?![\w.-])")),
        ("a path of a machine", (OF_PATHS, re.compile(PATHS))),
        ("a name of this machine", _any_of(_names(), r"(?<![\w.-])(?:{})(?![\w-])")),
    ]


def leaks(text: str, forbidden: Patterns) -> Iterator[tuple[str, str]]:
    """What kind of thing a text shows that it must not, and the thing; of a secret its first letters alone."""
    for what, (marks, pattern) in forbidden:
        for found in pattern.findall(text) if any(mark in text for mark in marks) else ():
            yield what, f"{found[:6]}..." if "token" in what or "secret" in what else found


def refuse(folder: Path, files: Iterable[Path]) -> None:
    """Raise BuildFailed at the first leak in files of a folder, naming the file and what it shows."""
    forbidden = patterns()
    for path in files:
        text = path.read_bytes().decode("utf-8", errors="replace")  # pictures, too: of their bytes the plain letters
        if path.suffix == ".ipynb":
            text = text.replace("\\n", "\n")
        for what, shown in leaks(text, forbidden):
            where = path.relative_to(folder).as_posix()
            raise BuildFailed(f"{where} shows {what}, {shown!r}: print something else there, and run it again.")


def pages(site: Path) -> list[Path]:
    """The files of a rendered site that say something of the book; the theme's own are left out."""
    found = (path for path in sorted(site.rglob("*")) if path.is_file())
    return [path for path in found if path.relative_to(site).parts[0] not in THIRD_PARTY]


def _folders() -> set[str]:
    """The repository, home, temporary folder, packages, and whatever folder a variable names (DFL_STORE, HF_HOME)."""
    places = [str(provenance.ROOT), str(Path.home()), tempfile.gettempdir(), sys.prefix]
    places += [value for value in os.environ.values() if value.startswith("/") and os.pathsep not in value]
    return {place.rstrip("/") for place in places if place.count("/") > 1 and not place.startswith(SYSTEM)}


def _names() -> list[str]:
    """User, host and e-mail address, unless the book's own text has such a word."""
    names = {os.environ.get("USER", ""), Path.home().name, socket.gethostname(), provenance.git("config", "user.email")}
    root = provenance.ROOT
    sources = [path for form in ("book/*.ipynb", "book/*.md", "dfl_utils/**/*.py") for path in root.glob(form)]
    said = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    return [name for name in names if len(name) >= SHORTEST_NAME and not re.search(rf"\b{re.escape(name)}\b", said)]


def _any_of(literals: Iterable[str], form: str = "{}") -> Pattern:
    longest_first = sorted(literals, key=len, reverse=True)
    return longest_first, re.compile(form.replace("{}", "|".join(map(re.escape, longest_first))))
