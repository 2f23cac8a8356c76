"""Chunks in files: what is written is read back, and nothing outside of the run's directory is."""

from __future__ import annotations

from pathlib import Path

import pytest

from rqmr.codec import seal
from rqmr.errors import OutputError, WorkerUnfit
from rqmr.remote import remove_tree
from rqmr.spilled import Spill, Stub, stub_in


@pytest.fixture
def spill(tmp_path: Path) -> Spill:
    spill = Spill(str(tmp_path / "spill"), "wordcount-7k2p9x")
    spill.prepare()
    return spill


def test_what_is_written_is_read_back(spill: Spill) -> None:
    spill.write("s0-m0000-a1-x", b"first,second")
    spill.write("s0-m0001-a1-x", b"third")

    found = spill.read([Stub("s0-m0001-a1-x", 0, 5), Stub("s0-m0000-a1-x", 6, 6), Stub("s0-m0000-a1-x", 0, 5)])

    assert found == [b"third", b"second", b"first"]
    assert [path.name for path in sorted(spill.directory.iterdir())] == ["s0-m0000-a1-x", "s0-m0001-a1-x"]


def test_a_file_that_is_gone_is_none(spill: Spill) -> None:
    """As a field is that is missing from its hash."""
    spill.write("there", b"chunk")
    assert spill.read([Stub("gone", 0, 5), Stub("there", 0, 5)]) == [None, b"chunk"]


def test_a_directory_that_is_gone_is_not_taken_for_missing_files(spill: Spill) -> None:
    """The run has ended, or this worker doesn't see it."""
    spill.clear()
    with pytest.raises(FileNotFoundError):
        spill.read([Stub("s0-m0000-a1-x", 0, 5)])
    with pytest.raises(FileNotFoundError):
        spill.write("s0-m0000-a1-x", b"late")
    assert not spill.directory.exists()


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "..", ".", "", "a\0b", "secret\n", "s0.new"])
def test_no_stub_leads_out_of_the_directory(spill: Spill, tmp_path: Path, name: str) -> None:
    """Who can write to Redis could else have any file of a worker's read."""
    (tmp_path / "spill" / "secret").write_bytes(b"secret")
    (spill.directory / "s0.new").write_bytes(b"half")
    assert spill.read([Stub(name, 0, 6)]) == [None]


@pytest.mark.parametrize("stub", [Stub("there", -1, 3), Stub("there", 0, -1), Stub("there", 0, 0)])
def test_no_stub_reads_what_is_no_range(spill: Spill, stub: Stub) -> None:
    spill.write("there", b"chunk")
    assert spill.read([stub]) == [None]


def test_a_stub_is_told_from_a_chunk() -> None:
    stub = Stub("s0-m0000-a1-1f3a9c0d", 123, 45678)
    assert stub_in(stub.encode()) == stub
    assert len(stub.encode()) < 50
    assert stub_in(None) is None
    assert stub_in(b"") is None
    assert stub_in(seal(b"x" * 1000)) is None
    assert stub_in(stub.encode()[:-1]) == Stub("", 0, 0), "damaged: of no file"
    assert stub_in(Stub("a", 0, 1).encode()[:10] + b"\xc0") == Stub("", 0, 0)


def test_a_file_that_can_not_be_read_or_written_is_this_workers_matter(spill: Spill) -> None:
    """Another one may be able to."""
    (spill.directory / "directory").mkdir()
    with pytest.raises(WorkerUnfit, match=r"it can't use the spill directory .*: Is a directory"):
        spill.read([Stub("directory", 0, 5)])
    with pytest.raises(WorkerUnfit, match=r"it can't use the spill directory .*: Is a directory"):
        spill.write("directory", b"")


def test_a_place_with_credentials_or_of_a_web_server_is_refused() -> None:
    for place in ("s3://me:hunter2@bucket/x", "https://example.test/x"):
        with pytest.raises(OutputError) as refused:
            Spill(place, "wordcount-7k2p9x")
        assert "hunter2" not in str(refused.value)


def test_what_is_written_while_the_directory_goes_does_not_keep_it(
    spill: Spill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attempt that is late finds no directory, at whatever moment it comes."""
    spill.write("s0-m0000-a1-x", b"chunk")
    removed: list[Path] = []

    def remove(path: Path) -> None:
        if path.exists():
            with pytest.raises(FileNotFoundError):
                spill.write("s0-m0001-a1-x", b"late")
            removed.append(path)
        remove_tree(path)

    monkeypatch.setattr("rqmr.spilled.remove_tree", remove)
    spill.clear()
    assert removed
    assert not list((tmp_path / "spill").iterdir())
