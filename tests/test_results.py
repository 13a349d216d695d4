"""The committed results are whole."""

import hashlib

from dfl_utils.build import publish
from dfl_utils.exhibits import tidy
from dfl_utils.store import provenance

RESULTS = provenance.ROOT / "results"


def test_a_stamp_is_short_and_of_the_table_beside_it():
    for profile in publish.published():
        assert (RESULTS / profile / "stamp.json").stat().st_size <= 15_000
        table = (RESULTS / profile / "exhibits.csv").read_bytes()
        assert publish.stamp(profile)["exhibits"] == hashlib.sha256(table).hexdigest()


def test_every_published_profile_has_its_table_and_its_stamp():
    folders = [path for path in RESULTS.glob("*") if path.is_dir() and path.name != "ci"]
    assert sorted(path.name for path in folders) == publish.published()
    assert all((path / "exhibits.csv").is_file() for path in folders)


def test_every_published_row_is_valid():
    for profile in (*publish.published(), "ci"):
        assert len(tidy.read(RESULTS / profile / "exhibits.csv")) > 0, profile
