"""`dfl fetch` against a server that the test itself runs: files of the web, zips, and a hub in miniature."""

import hashlib
import json
import re
import shutil
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from dfl_utils.build import catalogue, cli, doctor, fetch
from dfl_utils.build.catalogue import File
from dfl_utils.world import profile

CONTENT = bytes(range(256)) * 40  # 10,240 bytes
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Handler(BaseHTTPRequestHandler):
    """Serves the server's `files` with `headers` of their own; breaks once in the middle of those in `cut`."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(self.path.split("?")[0], self.server.files.get(self.path.split("?")[0]), 0)

    def do_GET(self):
        path, asked = self.path.split("?")[0], self.headers.get("Range")
        self.server.log.append((path, asked))
        content, start = self.server.files.get(path), int(re.findall(r"\d+", asked)[0]) if asked else 0
        self.answer(path, content, start)
        if content is not None and start < len(content):
            end = (start + len(content)) // 2 if path in self.server.cut else len(content)
            self.close_connection = path in self.server.cut
            self.server.cut.discard(path)
            self.wfile.write(content[start:end])

    def answer(self, path: str, content: bytes | None, start: int) -> None:
        length = len(content or b"")
        status = 404 if content is None else 416 if start >= length > 0 else 206 if start else 200
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{length - 1}/{length}")
        for name, value in self.server.headers.get(path, {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(0 if status == 416 else length - start))
        self.end_headers()


def point_to(hub: str, monkeypatch) -> None:
    template = f"{hub}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1024)
    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{served.server_address[1]}"
    served.files, served.headers, served.cut, served.log = {}, {}, set(), []
    point_to(served.url, monkeypatch)
    thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield served
    served.shutdown()
    thread.join()
    served.server_close()


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """A profile that needs nothing yet, whose downloads go to the test's folder."""
    monkeypatch.setattr(catalogue, "snapshot", lambda model: None)
    monkeypatch.setattr(catalogue, "files", lambda asked, purpose="book": [])
    return replace(profile.load("mini"), offline=False, data_root=tmp_path, models_root=tmp_path / "models")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name != ".dfl-fetch.lock"}


@pytest.fixture
def vectors(server, alone, tmp_path, monkeypatch):
    """Makes the profile need one file, of a known size and hash."""
    server.files["/vectors"] = CONTENT
    place, digest = tmp_path / "web/vectors", f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"

    def need(**changes):
        file = File("vectors", "", f"{server.url}/vectors", lambda asked: (place,), len(CONTENT), digest)
        monkeypatch.setattr(catalogue, "files", lambda asked, purpose="book": [replace(file, **changes)])
        return place

    return need


def test_a_broken_connection_is_taken_up_where_it_broke(server, alone, vectors):
    place, server.cut = vectors(), {"/vectors"}
    assert fetch.run(alone) == [f"vectors: {place}"]
    assert place.read_bytes() == CONTENT and names(place.parent) == {"vectors"}
    assert server.log == [("/vectors", None), ("/vectors", "bytes=5120-")]
    assert fetch.run(alone) == ["nothing is missing"] and len(server.log) == 2


def test_the_next_call_goes_on_with_what_an_earlier_one_left_and_asks_for_no_more_room(
    server, alone, vectors, monkeypatch
):
    place = vectors()
    place.parent.mkdir()
    place.with_name("vectors.part").write_bytes(CONTENT[:10_000])
    monkeypatch.setattr(doctor.Machine, "disk", lambda self, path: (240, 1))
    assert f"vectors is half fetched: {place}" in str(doctor.examine(alone))
    fetch.run(alone)
    assert place.read_bytes() == CONTENT and server.log == [("/vectors", "bytes=10000-")]


@pytest.mark.parametrize("wrong", [{"bytes": 10241}, {"digest": "md5:" + "0" * 32}])
def test_another_size_or_hash_is_refused_and_thrown_away(alone, vectors, wrong):
    place = vectors(**wrong)
    with pytest.raises(ValueError, match="/vectors is not what was published .* thrown away: run the same command"):
        fetch.run(alone)
    assert names(place.parent) == set()


def test_without_a_hash_two_versions_are_not_glued_together(server, alone, vectors):
    place = vectors(digest="", bytes=None)
    place.parent.mkdir()
    place.with_name("vectors.part").write_bytes(b"of another day")
    fetch.run(alone)
    assert place.read_bytes() == CONTENT


def test_a_small_disk_is_refused_before_anything_comes(server, alone, vectors, monkeypatch):
    place = vectors(bytes=3 * 10**9, unpacked=4 * 10**9)
    monkeypatch.setattr(doctor.Machine, "disk", lambda self, path: (6 * 10**9, 1))
    with pytest.raises(OSError, match="about 7.0 GB are still to come to the disk of .*, 6.0 GB are free: make room"):
        fetch.run(alone)
    assert server.log == [] and not place.parent.exists()


# --- archives and images (test_safety.py: names that would leave their folder) -------------------------------
def zipped(members: dict[str, bytes]) -> bytes:
    raw = BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return raw.getvalue()


def test_members_and_folders_are_unpacked(tmp_path):
    archive = tmp_path / "a.zip"
    archive.write_bytes(zipped({"in/one.txt": b"1", "in/deep/two.txt": b"2", "top/three.txt": b"3", "x": b"4"}))
    fetch.unpack(archive, tmp_path / "out", ["in/", "top/three.txt"])
    found = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.txt")}
    assert found == {"in/one.txt", "in/deep/two.txt", "three.txt"}
    with pytest.raises(ValueError, match="lacks top/four.txt: it is not the archive that was published"):
        fetch.unpack(archive, tmp_path / "out", ["top/four.txt"])


def test_a_damaged_archive_is_thrown_away(tmp_path):
    raw = bytearray(zipped({"in/one.txt": b"1" * 1000}))
    raw[100] ^= 1
    (tmp_path / "a.zip").write_bytes(raw)
    with pytest.raises(ValueError, match="a.zip is not what was published"):
        fetch.unpack(tmp_path / "a.zip", tmp_path / "out", ["in/"])
    assert not (tmp_path / "a.zip").exists()


@pytest.fixture
def data(server, alone, tmp_path, monkeypatch):
    """The profile with a zip of two images and NoCaps' captions of three."""
    pixels = BytesIO()
    Image.new("RGB", (4, 3)).save(pixels, "JPEG")
    server.files["/train2014.zip"] = zipped({f"train2014/{k}.jpg": pixels.getvalue() for k in range(2)})
    records = [{"file_name": f"{k}.jpg", "coco_url": f"{server.url}/images/{k}.jpg"} for k in range(3)]
    server.files["/nocaps.json"] = json.dumps({"images": records}).encode()
    server.files |= {f"/images/{k}.jpg": pixels.getvalue() for k in range(3)}
    train, captions, images = (tmp_path / name for name in ("coco/train2014", "nocaps/a.json", "nocaps/images/val"))
    url = f"{server.url}/train2014.zip"
    files = [
        File("coco-train", "", url, lambda asked: (train,), members=("train2014/",), count=2),
        File("nocaps-captions", "", f"{server.url}/nocaps.json", lambda asked: (captions,)),
        File("nocaps-images", "", "", lambda asked: (images,), count=3),
    ]
    monkeypatch.setattr(catalogue, "files", lambda asked, purpose="book": files)
    return alone


def test_data_come_unpacked_and_named_images_decoded(server, data, tmp_path):
    whole, server.files["/images/1.jpg"] = server.files["/images/1.jpg"], b"no image"
    with pytest.raises(ValueError, match="/images/1.jpg is no image that can be decoded"):
        fetch.run(data)
    server.files["/images/1.jpg"] = whole
    fetch.run(data)
    assert names(tmp_path / "coco") == {"train2014"} and names(tmp_path / "coco/train2014") == {"0.jpg", "1.jpg"}
    assert names(tmp_path / "nocaps/images/val") == {"0.jpg", "1.jpg", "2.jpg"}
    assert fetch.run(data) == ["nothing is missing"] and server.log.count(("/images/0.jpg", None)) == 1


def test_an_archive_whose_unpacking_was_broken_off_is_not_downloaded_again(server, data, tmp_path, monkeypatch):
    def killed(archive, folder, members):
        shutil.copytree(profile.MINI / "dino", folder / "train2014")  # as many files as are wanted, and other ones
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fetch, "unpack", killed)
        fetch.run(data, only=["coco-train"])
    fetch.run(data, only=["coco-train"])
    assert {"0.jpg", "1.jpg"} < names(tmp_path / "coco/train2014") and names(tmp_path / "coco") == {"train2014"}
    assert server.log[1:] == [("/train2014.zip", f"bytes={len(server.files['/train2014.zip'])}-")]  # it has no more


@pytest.mark.parametrize(("name", "url"), [("../out.jpg", "http://127.0.0.1/a"), ("a.jpg", "file:///etc")])
def test_an_image_of_another_kind_of_name_or_address_is_refused(server, data, name, url):
    server.files["/nocaps.json"] = json.dumps({"images": [{"file_name": name, "coco_url": url}]}).encode()
    with pytest.raises(ValueError, match="names an image .*: fetch the file again"):
        fetch.run(data)


WEIGHTS = (profile.MINI / "dino/model.safetensors").read_bytes()
JUDGE = {"config.json": b'{"model_type": "vit"}', "preprocessor_config.json": b"{}", "model.safetensors": WEIGHTS}
BESIDE = {"model.fp16.safetensors": b"x", "pytorch_model.bin": b"a pickle", "README.md": b"# a model"}
BASE = f"/lab/judge/resolve/{COMMIT}"


def publish(server, files: dict[str, bytes]) -> None:
    """Put a repository of one commit on the server, with what huggingface_hub asks of it."""
    tree = []
    for name, content in files.items():
        size, place, digest = len(content), f"{BASE}/{name}", hashlib.sha256(content).hexdigest()
        lfs = {"oid": digest, "size": size, "pointerSize": 134}
        tree.append({"type": "file", "path": name, "size": size, "oid": "0" * 40, "lfs": lfs})
        linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(size)}
        server.files[place], server.headers[place] = content, linked | {"X-Repo-Commit": COMMIT}
    server.files[f"/api/models/lab/judge/tree/{COMMIT}"] = json.dumps(tree).encode()


@pytest.fixture
def judge(server, alone):
    """The profile with one model to fetch, and the folder that it comes to."""
    publish(server, JUDGE | BESIDE)
    return replace(alone, dino="lab/judge", revisions={"lab/judge": COMMIT}), alone.models_root / "lab/judge"


def test_a_model_comes_whole_without_pickles_and_other_precisions(server, judge):
    asked, folder = judge
    assert fetch.run(asked) == [f"lab/judge: {folder}"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == JUDGE
    assert asked.locate("lab/judge") == str(folder) and catalogue.model_flaw(folder) is None
    server.log.clear()
    assert fetch.run(asked) == ["nothing is missing"] and server.log == []


def test_a_wrong_byte_of_the_hub_is_found_and_only_that_file_comes_again(server, judge):
    asked, folder = judge
    server.files[f"{BASE}/model.safetensors"] = WEIGHTS[:-1] + b"x"
    with pytest.raises(ValueError, match="safetensors of lab/judge is not what was published .* run the same command"):
        fetch.run(asked)
    assert "lab/judge at 0123456 is half fetched" in str(doctor.examine(asked))
    server.files[f"{BASE}/model.safetensors"] = WEIGHTS
    server.log.clear()
    fetch.run(asked)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert {path for path, _ in server.log if "resolve" in path} == {f"{BASE}/model.safetensors"}


@pytest.mark.parametrize("hub", ["http://127.0.0.1:9", None])
def test_a_hub_that_does_not_answer_is_one_sentence(server, judge, monkeypatch, hub):
    server.files = {}
    point_to(hub or server.url, monkeypatch)
    with pytest.raises(OSError, match=r"^lab/judge cannot be had \(.*\): what has come is kept, run the") as caught:
        fetch.run(judge[0])
    assert "\n" not in str(caught.value)


def test_a_licence_has_to_be_accepted(server, judge, monkeypatch):
    restricted = catalogue.Model("lab/judge", licence="openrail++", accept=True)
    monkeypatch.setitem(catalogue.MODELS, "lab/judge", restricted)
    with pytest.raises(ValueError, match=r"read it at https://huggingface.co/lab/judge, then add `--accept openrail"):
        fetch.run(judge[0])
    with pytest.raises(ValueError, match="No model asks for the licence 'any': choose from creativeml-openrail-m, "):
        fetch.run(judge[0], accept=["any"])
    assert server.log == []
    assert fetch.run(judge[0], accept=["openrail++"]) == [f"lab/judge: {judge[1]}"]


def test_the_embedded_profile_needs_nothing_and_what_is_not_needed_is_refused(capsys):
    assert cli.main(["fetch", "--profile", "mini"]) == 0
    assert cli.main(["fetch", "--profile", "mini", "--only", "lab/other"]) == 2
    said = capsys.readouterr()
    assert said.out == "nothing is missing\n" and "'mini' needs no 'lab/other': it needs nothing." in said.err
