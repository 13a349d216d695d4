"""The committed results are whole, and what this tree makes."""

from dfl_utils import exhibits, provenance

RESULTS = provenance.ROOT / "results"


def test_no_published_number_was_made_by_other_code_data_or_checkpoints():
    assert [sentence for profile in exhibits.published() for sentence in exhibits.stale(profile)] == []


def test_every_published_profile_has_its_table_and_its_stamp():
    folders = [path for path in RESULTS.glob("*") if path.is_dir()]
    assert sorted(path.name for path in folders) == exhibits.published()
    assert all((path / "exhibits.csv").is_file() for path in folders)


def test_every_published_row_is_valid():
    for profile in exhibits.published():
        assert len(exhibits.read(RESULTS / profile / "exhibits.csv")) > 0, profile
