"""Downloads, a hub in miniature, archives and `dfl fetch`, against a server that the test itself runs."""

import hashlib
import json
import os
import re
import shutil
import stat
import struct
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import pytest
from filelock import FileLock
from PIL import Image

from dfl_utils.build import archives, catalogue, cli, doctor, download, fetch, inventory
from dfl_utils.build.doctor import Machine
from dfl_utils.build.web_files import File
from dfl_utils.world import profile

CONTENT = bytes(range(256)) * 40  # 10,240 bytes
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Server(ThreadingHTTPServer):
    """Serves `files` by path; `faults` change single answers, one after the other; `log` says what was asked."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.headers: dict[str, dict[str, str]] = {}  # of single paths
        self.faults: list[str] = []
        self.log: list[tuple[str, str, str | None]] = []
        self.dropped: set[str] = set()  # paths whose next answer breaks in its middle
        self.etag = True
        self.stalled = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self._answer(body=True)

    def do_HEAD(self):
        self._answer(body=False)

    def log_message(self, *_):
        pass

    def _answer(self, body: bool) -> None:
        served: Server = self.server
        path, asked = self.path.split("?")[0], self.headers.get("Range")
        served.log.append((self.command, path, asked))
        fault = served.faults.pop(0) if body and served.faults else ""
        if body and path in served.dropped:
            served.dropped.remove(path)
            fault = "drop"
        if path not in served.files or fault.isdigit():
            self.send_response(int(fault or 404))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content, start = served.files[path], 0
        if fault == "wrong byte":
            content = bytes([content[0] ^ 1]) + content[1:]
        tag = f'"{hashlib.md5(served.files[path]).hexdigest()}"'
        unchanged = self.headers.get("If-Range") in (None, tag)
        if asked and fault != "no range" and unchanged:
            start = int(re.fullmatch(r"bytes=(\d+)-\d*", asked).group(1))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        if served.etag:
            self.send_header("ETag", tag)
        for name, value in served.headers.get(path, {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if body:
            content = content[start:]
            self.wfile.write(content[: len(content) // 2] if fault in ("drop", "stall") else content)
            self.close_connection = fault in ("drop", "stall")
            if fault == "stall":
                self.server.stalled.wait(30)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0.0)
    served = Server()
    thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield served
    served.shutdown()
    thread.join()
    served.server_close()


@pytest.fixture
def web():
    with download.client() as client:
        yield client


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# --- one file ---------------------------------------------------------------------------------------------
def test_a_dropped_connection_is_resumed_where_it_broke(server, web, tmp_path):
    server.files["/a"], server.faults = CONTENT, ["drop", "drop"]
    told = []
    found = download.fetch(f"{server.url}/a", tmp_path / "a", web=web, sha256=sha256(CONTENT), progress=told.append)
    assert found == sha256(CONTENT) and (tmp_path / "a").read_bytes() == CONTENT
    assert [asked for _, _, asked in server.log] == [None, "bytes=5120-", "bytes=7680-"]
    assert sum(told) == len(CONTENT)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_killed_download_goes_on_in_the_next_call(server, web, tmp_path):
    server.files["/a"], server.faults = CONTENT, ["drop", *["503"] * download.TRIES]
    with pytest.raises(OSError, match=r"broke 5 times in a row .*5,120 bytes are kept, and the same command"):
        download.fetch(f"{server.url}/a", tmp_path / "a", web=web)
    assert not (tmp_path / "a").exists()
    server.log.clear()
    download.fetch(f"{server.url}/a", tmp_path / "a", web=web)
    assert server.log == [("GET", "/a", "bytes=5120-")] and (tmp_path / "a").read_bytes() == CONTENT


def test_a_killed_process_leaves_what_the_next_one_goes_on_with(server, web, tmp_path):
    server.files["/a"], server.faults = CONTENT, ["stall"]
    code = "import sys; from pathlib import Path; from dfl_utils.build import download\n"
    code += "with download.client() as web: download.fetch(sys.argv[1], Path(sys.argv[2]), web=web)"
    with subprocess.Popen([sys.executable, "-c", code, f"{server.url}/a", tmp_path / "a"]) as process:
        while not ((tmp_path / "a.part").is_file() and (tmp_path / "a.part").stat().st_size == 5120):
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    server.stalled.set()
    server.log.clear()
    download.fetch(f"{server.url}/a", tmp_path / "a", web=web)
    assert server.log == [("GET", "/a", "bytes=5120-")] and (tmp_path / "a").read_bytes() == CONTENT


def test_a_server_without_ranges_is_read_from_the_start(server, web, tmp_path):
    server.files["/a"], server.faults = CONTENT, ["drop", "no range"]
    told = []
    download.fetch(f"{server.url}/a", tmp_path / "a", web=web, progress=told.append)
    assert (tmp_path / "a").read_bytes() == CONTENT and sum(told) == len(CONTENT)


def test_a_file_that_changed_between_two_calls_is_not_glued_together(server, web, tmp_path):
    server.files["/a"], server.faults = CONTENT, ["drop", *["503"] * download.TRIES]
    with pytest.raises(OSError):
        download.fetch(f"{server.url}/a", tmp_path / "a", web=web)
    server.files["/a"] = CONTENT[::-1]
    download.fetch(f"{server.url}/a", tmp_path / "a", web=web)
    assert (tmp_path / "a").read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize(("known", "asked"), [({}, [None, None]), ({"md5": True}, [None, "bytes=5120-"])])
def test_without_a_version_only_a_hash_allows_to_resume(server, web, tmp_path, known, asked):
    server.files["/a"], server.faults, server.etag = CONTENT, ["drop"], False
    md5 = hashlib.md5(CONTENT).hexdigest() if known else None
    download.fetch(f"{server.url}/a", tmp_path / "a", web=web, md5=md5)
    assert [ranges for _, _, ranges in server.log] == asked and (tmp_path / "a").read_bytes() == CONTENT


@pytest.mark.parametrize("known", ["sha256", "md5"])
def test_one_wrong_byte_is_found_and_thrown_away(server, web, tmp_path, known):
    server.files["/a"], server.faults = CONTENT, ["wrong byte"]
    hashes = {known: hashlib.new(known, CONTENT).hexdigest()}
    with pytest.raises(ValueError, match=f"is not what was published: its {known} is .* run the same command again"):
        download.fetch(f"{server.url}/a", tmp_path / "a", web=web, **hashes)
    assert not list(tmp_path.glob("a*part"))
    assert download.fetch(f"{server.url}/a", tmp_path / "a", web=web, **hashes) == sha256(CONTENT)


def test_a_wrong_size_is_found(server, web, tmp_path):
    server.files["/a"] = CONTENT
    with pytest.raises(ValueError, match="its bytes is 10240 and should be 10241"):
        download.fetch(f"{server.url}/a", tmp_path / "a", web=web, size=len(CONTENT) + 1)


def test_a_finished_part_is_checked_and_not_asked_for_again(server, web, tmp_path):
    (tmp_path / "a.part").write_bytes(CONTENT)
    found = download.fetch(f"{server.url}/a", tmp_path / "a", web=web, size=len(CONTENT), sha256=sha256(CONTENT))
    assert found == sha256(CONTENT) and server.log == []


def test_a_refusal_is_not_repeated(server, web, tmp_path):
    with pytest.raises(download.Refused, match=r"/nothing answers 404: "):
        download.fetch(f"{server.url}/nothing", tmp_path / "a", web=web)
    assert len(server.log) == 1


# --- archives ---------------------------------------------------------------------------------------------
def pack(path: Path, members: dict[str, bytes | zipfile.ZipInfo]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_members_and_folders_are_unpacked(tmp_path):
    archive = pack(tmp_path / "a.zip", {"in/one.txt": b"1", "in/deep/two.txt": b"2", "top/three.txt": b"3", "x": b"4"})
    archives.unpack(archive, tmp_path / "out", ["in/", "top/three.txt"])
    found = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert found == {"in/one.txt", "in/deep/two.txt", "three.txt"}


@pytest.mark.parametrize("name", ["../out.txt", "in/../../out.txt", "/etc/out.txt", "..\\out.txt", "C:/out.txt"])
def test_a_path_out_of_the_folder_is_refused(tmp_path, name):
    archive = pack(tmp_path / "a.zip", {"in/one.txt": b"1"})
    with zipfile.ZipFile(archive, "a") as content:
        info = zipfile.ZipInfo("x")
        info.filename = name
        content.writestr(info, b"out")
    with pytest.raises(ValueError, match="which would leave its folder: do not trust it"):
        archives.unpack(archive, tmp_path / "deep" / "out", ["in/"])
    assert not list(tmp_path.rglob("*out.txt")) and not list((tmp_path / "deep" / "out").iterdir())


def test_a_link_is_refused(tmp_path):
    info = zipfile.ZipInfo("in/link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr(info, "/etc/passwd")
    with pytest.raises(ValueError, match="'in/link', which is a link or no plain file"):
        archives.unpack(archive, tmp_path / "out", ["in/"])


def test_a_half_written_folder_is_done_again_and_a_partial_one_is_filled(tmp_path):
    archive = pack(tmp_path / "a.zip", {"in/one.txt": b"one", "in/two.txt": b"two"})
    (tmp_path / "out/.unpacking-a/in").mkdir(parents=True)  # of a call that was killed
    (tmp_path / "out/.unpacking-a/in/one.txt").write_bytes(b"o")
    (tmp_path / "out/in").mkdir()
    (tmp_path / "out/in/own.txt").write_bytes(b"own")
    archives.unpack(archive, tmp_path / "out", ["in/"])
    assert {path.name: path.read_bytes() for path in (tmp_path / "out/in").iterdir()} == {
        "one.txt": b"one", "two.txt": b"two", "own.txt": b"own"}  # fmt: skip
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["in"]


def test_a_damaged_archive_leaves_nothing(tmp_path):
    archive = pack(tmp_path / "a.zip", {"in/one.txt": b"1" * 1000})
    raw = bytearray(archive.read_bytes())
    raw[100] ^= 1
    archive.write_bytes(raw)
    with pytest.raises(ValueError, match="a.zip is damaged or no zip file"):
        archives.unpack(archive, tmp_path / "out", ["in/"])
    assert not list((tmp_path / "out").iterdir())


def test_an_archive_without_the_member_is_refused(tmp_path):
    with pytest.raises(ValueError, match="lacks dataset_coco.json: it is not the archive that was published"):
        archives.unpack(pack(tmp_path / "a.zip", {"x": b"1"}), tmp_path / "out", ["dataset_coco.json"])


def test_an_archive_larger_than_the_disk_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 5}))
    with pytest.raises(OSError, match="has 5 bytes free and a.zip unpacks to 6: make room"):
        archives.unpack(pack(tmp_path / "a.zip", {"in/one.txt": b"123456"}), tmp_path / "out", ["in/"])
    assert not list((tmp_path / "out").iterdir())


# --- a hub in miniature -----------------------------------------------------------------------------------
def weights(values: int = 64) -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [values], "data_offsets": [0, 4 * values]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(4 * values)


def publish(server: Server, model: str, files: dict[str, bytes]) -> None:
    """Put a repository of one commit on the server, with what huggingface_hub asks of it."""
    tree = []
    for name, content in files.items():
        entry = {"type": "file", "path": name, "size": len(content)}
        entry["oid"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{entry["oid"]}"'}
        if name.endswith((".safetensors", ".bin")):
            entry["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 134}
            headers |= {"X-Linked-Etag": f'"{sha256(content)}"', "X-Linked-Size": str(len(content))}
        tree.append(entry)
        server.files[f"/{model}/resolve/{COMMIT}/{name}"] = content
        server.headers[f"/{model}/resolve/{COMMIT}/{name}"] = headers
    server.files[f"/api/models/{model}/tree/{COMMIT}"] = json.dumps(tree).encode()
    server.files[f"/api/models/{model}"] = json.dumps({"id": model, "sha": COMMIT}).encode()
    server.headers[f"/api/models/{model}"] = {"Content-Type": "application/json"}
    server.headers[f"/api/models/{model}/tree/{COMMIT}"] = {"Content-Type": "application/json"}


JUDGE = {
    "config.json": b'{"model_type": "vit"}',
    "preprocessor_config.json": b"{}",
    "model.safetensors": weights(),
    "model.fp16.safetensors": weights(32),
    "pytorch_model.bin": b"a pickle",
    "README.md": b"# a model",
}


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """A profile that needs one model of the hub, and whose files from the web are those of the test."""
    monkeypatch.setattr(inventory, "snapshot", lambda model: None)
    monkeypatch.setattr(catalogue, "files", lambda asked: [])
    return replace(
        profile.load("mini"), dino="lab/judge", offline=False, data_root=tmp_path, models_root=tmp_path / "models"
    )


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_model_comes_whole_without_pickles_and_other_precisions(server, alone):
    publish(server, "lab/judge", JUDGE)
    folder = alone.models_root / "lab/judge"
    assert fetch.run(alone, endpoint=server.url) == [f"lab/judge: {folder}"]
    assert names(folder) == {"config.json", "preprocessor_config.json", "model.safetensors"}
    assert (folder / "model.safetensors").read_bytes() == JUDGE["model.safetensors"]
    assert json.loads((alone.models_root / "commits.json").read_text()) == {"lab/judge": COMMIT}
    assert alone.locate("lab/judge") == str(folder) and inventory.model_flaw(folder) is None
    server.log.clear()
    assert fetch.run(alone, endpoint=server.url)[-1] == "nothing is missing" and server.log == []


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_wrong_byte_of_the_hub_is_found_and_only_that_file_comes_again(server, alone, name):
    publish(server, "lab/judge", JUDGE)
    place = f"/lab/judge/resolve/{COMMIT}/{name}"
    server.files[place] = b"x" + JUDGE[name][1:]
    with pytest.raises(ValueError, match=f"{name} of lab/judge is not what was published .* run the same command"):
        fetch.run(alone, endpoint=server.url)
    assert not (alone.models_root / "lab/judge").exists()
    server.files[place] = JUDGE[name]
    server.log.clear()
    fetch.run(alone, endpoint=server.url)
    assert {path for method, path, _ in server.log if method == "GET" and "resolve" in path} == {place}
    assert (alone.models_root / "lab/judge" / name).read_bytes() == JUDGE[name]


def test_a_broken_connection_to_the_hub_loses_nothing(server, alone):
    publish(server, "lab/judge", JUDGE)
    server.dropped = {f"/lab/judge/resolve/{COMMIT}/model.safetensors"}
    try:
        fetch.run(alone, endpoint=server.url)
    except OSError as error:  # the library may go on by itself, or leave it to the next call
        assert "run the same command again" in str(error) and "\n" not in str(error)
        assert not (alone.models_root / "lab/judge").exists()
        fetch.run(alone, endpoint=server.url)
    assert (alone.models_root / "lab/judge/model.safetensors").read_bytes() == JUDGE["model.safetensors"]


def test_a_commit_that_was_fetched_once_is_fetched_again(server, alone):
    publish(server, "lab/judge", JUDGE)
    fetch.run(alone, endpoint=server.url)
    shutil.rmtree(alone.models_root / "lab")
    server.files["/api/models/lab/judge"] = json.dumps({"id": "lab/judge", "sha": "f" * 40}).encode()
    fetch.run(alone, endpoint=server.url)
    assert inventory.model_flaw(alone.models_root / "lab/judge") is None


def test_a_pinned_commit_is_the_one_that_comes(server, alone):
    publish(server, "lab/judge", JUDGE)
    with pytest.raises(OSError, match="lab/judge") as caught:
        fetch.run(replace(alone, revisions={"lab/judge": "f" * 40}), endpoint=server.url)
    assert "\n" not in str(caught.value)
    fetch.run(replace(alone, revisions={"lab/judge": COMMIT}), endpoint=server.url)
    assert ("GET", "/api/models/lab/judge", None) not in server.log


def test_a_repository_of_pickles_is_refused_before_it_comes(server, alone):
    publish(server, "lab/judge", {"config.json": b"{}", "pytorch_model.bin": b"a pickle"})
    with pytest.raises(ValueError, match="lab/judge at 0123456 holds no safetensors weights, and pickles are not"):
        fetch.run(alone, endpoint=server.url)
    assert not [path for _, path, _ in server.log if "resolve" in path]


def test_a_path_of_the_hub_out_of_its_folder_is_refused(server, alone):
    publish(server, "lab/judge", JUDGE | {"../../out.json": b"{}"})
    with pytest.raises(ValueError, match=r"names a file '\.\./\.\./out.json', which would leave its folder"):
        fetch.run(alone, endpoint=server.url)


def test_a_hub_that_does_not_answer_is_one_sentence(server, alone):
    with pytest.raises(OSError, match="lab/judge") as caught:
        fetch.run(alone, endpoint=server.url)
    assert "\n" not in str(caught.value)


def test_a_small_disk_is_refused_before_anything_comes(server, alone):
    publish(server, "lab/judge", JUDGE)

    class Small(Machine):
        def disk(self, path):
            return 100, 1

    with pytest.raises(OSError, match=r"has 0.0 GB free of the 0.0 GB that are still to come: make room"):
        fetch.run(alone, endpoint=server.url, machine=Small())
    assert not [path for _, path, _ in server.log if "resolve" in path]


def test_a_licence_has_to_be_accepted_once(server, alone, monkeypatch):
    restricted = catalogue.Model("lab/judge", licence="openrail++", accept=True)
    monkeypatch.setitem(catalogue.MODELS, "lab/judge", restricted)
    publish(server, "lab/judge", JUDGE)
    with pytest.raises(ValueError, match=r"read it at https://huggingface.co/lab/judge, then add `--accept openrail"):
        fetch.run(alone, endpoint=server.url)
    assert server.log == []
    with pytest.raises(ValueError, match="No model asks for the licence 'any': choose from creativeml-openrail-m, "):
        fetch.run(alone, endpoint=server.url, accept=["any"])
    fetch.run(alone, endpoint=server.url, accept=["openrail++"])
    assert doctor.accepted(alone) == {"openrail++"}


def test_a_broken_mirror_is_not_written_over(server, alone):
    folder = alone.models_root / "lab/judge"
    folder.mkdir(parents=True)
    with pytest.raises(ValueError, match=r"lab/judge lacks config.json: delete the folder and run the same command"):
        fetch.run(alone, endpoint=server.url)


def test_two_calls_do_not_write_to_one_folder(server, alone):
    alone.models_root.mkdir()
    with (
        FileLock(alone.models_root / ".fetch.lock"),
        pytest.raises(OSError, match="Another `dfl fetch` is at work in .*models: wait for it"),
    ):
        fetch.run(alone, endpoint=server.url)


def test_an_unknown_name_lists_what_is_needed(alone):
    with pytest.raises(ValueError, match="The profile 'mini' needs no 'lab/other': it needs lab/judge."):
        fetch.run(alone, only=["lab/other"])


# --- files of the web through `dfl fetch` -----------------------------------------------------------------
@pytest.fixture
def data(server, alone, tmp_path, monkeypatch):
    """The same profile with a zip of two images and NoCaps' captions of three, and no model to fetch."""
    pixels = BytesIO()
    Image.new("RGB", (4, 3)).save(pixels, "JPEG")
    zipped = pack(tmp_path / "source.zip", {"train2014/1.jpg": pixels.getvalue(), "train2014/2.jpg": pixels.getvalue()})
    server.files["/train2014.zip"] = zipped.read_bytes()
    zipped.unlink()
    records = [{"file_name": f"{k}.jpg", "coco_url": f"{server.url}/images/{k}.jpg"} for k in range(3)]
    server.files["/nocaps.json"] = json.dumps({"images": records}).encode()
    server.files |= {f"/images/{k}.jpg": pixels.getvalue() for k in range(3)}
    parts = [
        File("coco-train", f"{server.url}/train2014.zip", lambda asked: (tmp_path / "coco/train2014",), None, "", "",
             members=("train2014/",), count=2),
        File("nocaps-captions", f"{server.url}/nocaps.json", lambda asked: (tmp_path / "nocaps/nocaps.json",), None,
             "", ""),
        File("nocaps-images", "", lambda asked: (tmp_path / "nocaps/images/val",), None, "", "", count=3),
    ]  # fmt: skip
    monkeypatch.setattr(catalogue, "files", lambda asked: parts)
    return replace(alone, dino=profile.load("mini").dino)


def test_data_come_unpacked_and_named_images_decoded(server, data, tmp_path):
    fetch.run(data)
    assert names(tmp_path / "coco") == {"train2014"} and names(tmp_path / "coco/train2014") == {"1.jpg", "2.jpg"}
    assert names(tmp_path / "nocaps/images/val") == {"0.jpg", "1.jpg", "2.jpg"}
    server.log.clear()
    assert fetch.run(data)[-1] == "nothing is missing" and server.log == []


def test_an_archive_whose_unpacking_was_broken_off_is_not_downloaded_again(server, data, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(archives, "unpack", killed)
        with pytest.raises(KeyboardInterrupt):
            fetch.run(data, only=["coco-train"])
    assert names(tmp_path / "coco") == {"train2014.zip"}
    (zipped,) = [file for file in catalogue.files(data) if file.name == "coco-train"]
    assert inventory.started(data, zipped) == (tmp_path / "coco/train2014.zip").stat().st_size
    server.log.clear()
    fetch.run(data, only=["coco-train"])
    assert names(tmp_path / "coco") == {"train2014"} and server.log == []


def test_what_has_come_already_needs_no_room(server, alone):
    publish(server, "lab/judge", JUDGE)
    partial = alone.models_root / ".partial" / f"lab--judge-{COMMIT[:12]}"
    partial.mkdir(parents=True)
    (partial / "model.safetensors").write_bytes(JUDGE["model.safetensors"])
    rest = sum(len(JUDGE[name]) for name in ("config.json", "preprocessor_config.json"))

    class Tight(Machine):
        def disk(self, path):
            return rest, 1

    fetch.run(alone, endpoint=server.url, machine=Tight())
    assert inventory.model_flaw(alone.models_root / "lab/judge") is None


def test_a_file_without_a_published_hash_is_held_to_its_first(server, data, tmp_path):
    fetch.run(data, only=["nocaps-captions"])
    (tmp_path / "nocaps/nocaps.json").unlink()
    server.files["/nocaps.json"] += b" "
    with pytest.raises(ValueError, match="nocaps.json is not what was published: its sha256 is"):
        fetch.run(data, only=["nocaps-captions"])


def test_lost_and_broken_images_come_again_and_no_other(server, data, tmp_path):
    fetch.run(data, only=["nocaps"])
    (tmp_path / "nocaps/images/val/1.jpg").unlink()
    whole, server.files["/images/1.jpg"] = server.files["/images/1.jpg"], b"no image"
    server.log.clear()
    with pytest.raises(ValueError, match="/images/1.jpg is no image that can be decoded"):
        fetch.run(data, only=["nocaps"])
    server.files["/images/1.jpg"] = whole
    fetch.run(data, only=["nocaps"])
    assert {path for _, path, _ in server.log} == {"/images/1.jpg"}
    assert (tmp_path / "nocaps/images/val/1.jpg").read_bytes() == whole


@pytest.mark.parametrize("record", [
    {"file_name": "../out.jpg", "coco_url": "http://127.0.0.1/a"}, {"file_name": "a.jpg", "coco_url": "file:///etc"},
])  # fmt: skip
def test_an_image_of_another_kind_of_address_is_refused(server, data, record):
    server.files["/nocaps.json"] = json.dumps({"images": [record]}).encode()
    with pytest.raises(ValueError, match="names an image .*: fetch the file again"):
        fetch.run(data, only=["nocaps"])


def test_another_folder_takes_everything(tmp_path):
    moved = fetch.moved(profile.configured("paper", coco_root="/else"), tmp_path)
    assert moved.dataset_root("coco") == tmp_path / "coco" and moved.models_root == tmp_path / "models"
    assert moved.word_vectors == tmp_path / "models/glove-wiki-gigaword-200.gz"


def test_nothing_is_told_to_the_hub():
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"


def test_the_embedded_profile_needs_nothing(capsys):
    assert cli.main(["fetch", "--profile", "mini"]) == 0
    assert capsys.readouterr().out == "nothing is missing\n"
