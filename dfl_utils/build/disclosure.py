"""What an executed chapter or a page may tell of the machine that made it: nothing.

Looked for: this machine's folders, user, host and e-mail address, values of environment variables, and any machine's
home folders, temporary folders and access tokens. What the committed sources say themselves is no leak, unless it is
a secret.
"""

import base64
import getpass
import json
import os
import re
import site
import socket
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dfl_utils.build.chapter import BuildFailed
from dfl_utils.store import provenance

SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|AUTH", re.IGNORECASE)
SHORTEST_SECRET, SHORTEST_VALUE = 8, 4  # characters; `true` as a token, or OMP_NUM_THREADS=1, tells nothing
# Of Hugging Face, GitHub, GitLab, AWS, OpenAI and its likes, Google, Slack, a key in PEM form, a URL with a password.
TOKENS = re.compile(
    r"\bhf_[A-Za-z0-9]{30,}|\bgh[opsur]_[A-Za-z0-9]{36,}|\bgithub_pat_\w{40,}|\bglpat-[\w-]{20,}"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bsk-[\w-]{32,}|\bAIza[\w-]{35}|\bxox[abpr]-[\w-]{10,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----|\bhttps?://[^\s/:@\"'<>]+:[^\s/:@\"'<>]+@"
)
# A path of any machine; not the end of a longer path or of a web address.
PATHS = re.compile(
    r"(?<![\w.~$}-])(?:/home/|/Users/|/private/var/|/var/folders/|/tmp/|/root/|[A-Za-z]:\\+Users\\+)[\w.-]+"
)
# Where everybody has the same; files below /tmp are found as paths.
EVERYBODYS, SYSTEM = ("/", "/tmp"), ("/usr/", "/bin/", "/etc/", "/dev/", "/proc/", "/sys/")
IMAGES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".ico")
# The theme's own scripts, styles and fonts, the same on every machine.
THIRD_PARTY = ("_static", "_sphinx_design_static")


@dataclass(frozen=True)
class Leak:
    """`what` kind of thing `shown` is, and `where` it stands; a secret is shown by its first letters alone."""

    where: str
    what: str
    shown: str


class Inspector:
    """What must not be shown, worked out once.

    Args:
        environment: variables; those of this process if None.
        root: the repository; its committed text is what a page may say.
    """

    def __init__(self, environment: Mapping[str, str] | None = None, root: Path | None = None):
        environment = os.environ if environment is None else environment
        self.root = root or provenance.ROOT
        self.said = _committed(self.root)
        self.secrets = {
            value: f"${name}"
            for name, value in environment.items()
            if SECRET_NAME.search(name) and len(value) >= SHORTEST_SECRET and not Path(value).exists()
        }
        self.variables = {name: value for name, value in environment.items() if len(value) >= SHORTEST_VALUE}
        self.names, self.folders = _names(), _folders(self.root, environment)
        self._folders = _any_of(self.folders, r"(?<![\w.~$}/-])(?:{})(?![\w.-])")
        self._names = _any_of(self.names, r"(?<![\w.-])(?:{})(?![\w-])")
        self._variables = _any_of(self.variables, r"\b({})\b[\"']?\s*[=:]\s*[\"']?")

    def leaks(self, text: str, where: str) -> Iterator[Leak]:
        """Everything in a text that must not be shown."""
        for value, name in self.secrets.items():
            if value in text:
                yield Leak(where, f"the value of {name}", _hidden(value))
        for found in TOKENS.finditer(text):
            yield Leak(where, "an access token", _hidden(found.group()))
        for found in self._variables.finditer(text):
            name = found.group(1)
            if text.startswith(value := self.variables[name], found.end()):
                shown = text[found.start() : found.end() + len(value)]
                yield from self._unless_said(where, "an environment variable", shown)
        for pattern, what in ((self._folders, "a folder of this machine"), (PATHS, "a path of a machine")):
            for found in pattern.finditer(text):
                yield from self._unless_said(where, what, found.group())
        for found in self._names.finditer(text):
            yield from self._unless_said(where, self.names[found.group()], found.group())

    def notebook(self, path: Path) -> Iterator[Leak]:
        """Leaks of an executed copy: its cells, outputs, pictures and metadata."""
        content = json.loads(path.read_text(encoding="utf-8"))
        for k, cell in enumerate(content.pop("cells")):
            pictures, where = [], f"{path.name}, cell {k + 1}"
            for output in cell.get("outputs", []):
                data = output.get("data", {})
                pictures += [data.pop(kind) for kind in list(data) if kind.startswith("image/") and "svg" not in kind]
            for text in _texts(cell):
                yield from self.leaks(text, where)
            for picture in pictures:
                yield from self.picture(base64.b64decode("".join(picture)), where)
        for text in _texts(content):
            yield from self.leaks(text, f"{path.name}, metadata")

    def picture(self, raw: bytes, where: str) -> Iterator[Leak]:
        """Leaks in what an encoded picture says in plain letters, such as the text chunks of a PNG.

        Only runs of letters are read: compressed pixels hold any three letters somewhere.
        """
        for found in re.finditer(rb"[\x20-\x7e]{8,}", raw):
            yield from self.leaks(found.group().decode("ascii"), where)

    def file(self, path: Path, where: str) -> Iterator[Leak]:
        """Leaks of one file, by its suffix: a notebook, a picture or text."""
        if path.suffix == ".ipynb":
            yield from self.notebook(path)
        elif path.suffix in IMAGES:
            yield from self.picture(path.read_bytes(), where)
        else:
            yield from self.leaks(path.read_bytes().decode("utf-8", errors="replace"), where)

    def refuse(self, folder: Path, files: Iterable[Path]) -> None:
        """Raise BuildFailed at the first leak in files of a folder, naming the page and what it shows."""
        for path in files:
            place = path.relative_to(folder)
            for leak in self.file(path, place.as_posix()):
                raise BuildFailed(
                    f"{leak.where} shows {leak.what}, {leak.shown!r}: print something else there, and run it again."
                )

    def _unless_said(self, where: str, what: str, shown: str) -> Iterator[Leak]:
        if not re.search(rf"(?<!\w){re.escape(shown)}(?!\w)", self.said):
            yield Leak(where, what, shown)


def pages(site_folder: Path) -> list[Path]:
    """The files of a rendered site that say something of the book; the theme's own are left out."""
    found = (path for path in sorted(site_folder.rglob("*")) if path.is_file())
    return [path for path in found if path.relative_to(site_folder).parts[0] not in THIRD_PARTY]


def _committed(root: Path) -> str:
    """The text of the book's sources and of the package, outputs left out."""
    texts = []
    for pattern in ("book/*.ipynb", "book/*.md", "book/*.bib", "dfl_utils/**/*.py", "*.md", "*.yml", "*.toml", "*.cff"):
        for path in sorted(root.glob(pattern)):
            raw = path.read_text(encoding="utf-8")
            if path.suffix == ".ipynb":
                raw = "\n".join("".join(cell["source"]) for cell in json.loads(raw)["cells"])
            texts.append(raw)
    return "\n".join(texts)


def _folders(root: Path, environment: Mapping[str, str]) -> set[str]:
    """The repository, home, temporary folder, packages, and whatever folder a variable names (DFL_STORE, HF_HOME)."""
    places = [str(root), os.path.expanduser("~"), tempfile.gettempdir(), *site.getsitepackages()]  # noqa: PTH111
    places += [sysconfig.get_paths()[name] for name in ("purelib", "stdlib")]
    places += [value for value in environment.values() if value.count(os.sep) > 1 and Path(value).is_absolute()]
    found = {str(path) for place in places if os.pathsep not in place for path in (Path(place), Path(place).resolve())}
    return {place for place in found if place not in EVERYBODYS and not place.startswith(SYSTEM)}


def _names() -> dict[str, str]:
    """User, host and e-mail address; what is too short to be told from a word is left out."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        user = ""
    names = {user: "the user's name", socket.gethostname(): "the name of the host"}
    names[provenance.git("config", "user.email")] = "an e-mail address"
    return {name: what for name, what in names.items() if len(name) > 2}


def _any_of(literals: Iterable[str], form: str) -> re.Pattern:
    longest_first = sorted(literals, key=len, reverse=True)
    return re.compile(form.replace("{}", "|".join(map(re.escape, longest_first)) or "(?!)"))


def _texts(value: object) -> Iterator[str]:
    """Every string in parsed JSON, the lists of lines that a notebook makes of a text joined again."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        yield "".join(value)
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _hidden(secret: str) -> str:
    return f"{secret[:6]}..."
