"""What made a number: checkpoints by their contents, packages, the machine."""

import os
import shutil

import pytest

from dfl_utils.store import provenance


def checkpoint(house, name="data/mini/clip", weights="weights"):
    house.write(f"{name}/model.safetensors", weights)
    house.write(f"{name}/config.json", "{}")
    return house.root / name


def test_a_checkpoint_is_all_that_a_library_may_read_of_it(house):
    folder = checkpoint(house)
    before = provenance.checkpoint_hash(folder)
    for name in ("README.md", "model.bin", ".git/HEAD", ".cache/x"):
        house.write(f"data/mini/clip/{name}", "not read")
    assert provenance.checkpoint_hash(folder) == before
    seen = {before}
    for name in ("vocab.txt", "merges.txt", "spiece.model", "chat_template.jinja", "unet/config.json"):
        house.write(f"data/mini/clip/{name}", "read")
        seen.add(provenance.checkpoint_hash(folder))
    seen.add(provenance.checkpoint_hash(checkpoint(house, weights="other")))
    assert len(seen) == 7
    for name, text in (("a/x", "1"), ("a/y", "2"), ("b/x", "2"), ("b/y", "1")):  # moved content
        house.write(f"{name}.json", text)
    assert provenance.files_hash(house.root / "a") != provenance.files_hash(house.root / "b")


def test_weights_that_are_not_there_have_a_mend_that_fits(house, tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "ROOT", house.root)
    shipped, own, pickled = checkpoint(house), tmp_path / "own", tmp_path / "pickled"
    for folder in (own, pickled):
        shutil.copytree(shipped, folder)
    (pickled / "pytorch_model.bin").write_bytes(b"a pickle")
    for folder, mend in (
        (shipped, "restore it by `git checkout -- data/mini/clip` or rebuild it by `make mini`"),
        (own, "copy or download the checkpoint again"),
        (pickled, "pickles are not loaded: open it once by its library's from_pretrained, and write it by save_pret"),
    ):
        (folder / "model.safetensors").unlink()
        with pytest.raises(FileNotFoundError, match=rf"holds no \*\.safetensors; {mend}"):
            provenance.checkpoint_hash(folder)


def test_a_file_of_the_same_size_and_time_is_another_one(house):
    """As the checkpoints of one training are, unpacked or copied with their times."""
    file = checkpoint(house) / "model.safetensors"
    before, found = provenance.file_hash(file), file.stat()
    file.write_text("WEIGHTS")
    os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert file.stat().st_size == found.st_size and file.stat().st_mtime_ns == found.st_mtime_ns
    assert provenance.file_hash(file) != before


def test_a_key_names_the_release_of_a_package_and_not_its_build(monkeypatch):
    monkeypatch.setattr(
        provenance.importlib.metadata, "version", lambda name: {"one": "2.14.1+cpu", "other": "2.14.1"}[name]
    )
    assert provenance.release("one") == provenance.release("other") == "2.14.1"
