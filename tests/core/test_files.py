"""Files are written whole or not at all, and read without waiting for what is no file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from steerserve.core.files import read_plain, staged_file, write_text


def test_what_was_written_aside_and_not_moved_is_gone(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    write_text(file, "old\r\n")
    with pytest.raises(RuntimeError), staged_file(file, "new"):
        raise RuntimeError
    assert [one.name for one in tmp_path.iterdir()] == ["a.txt"]
    assert file.read_bytes() == b"old\r\n"


def test_a_file_that_cannot_be_replaced_leaves_nothing_aside(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(IsADirectoryError):
        write_text(tmp_path / "a.txt", "new")
    assert [one.name for one in tmp_path.iterdir()] == ["a.txt"]


def test_two_writers_of_one_process_id_write_different_files(tmp_path: Path) -> None:
    with staged_file(tmp_path / "a", "1") as one, staged_file(tmp_path / "a", "2") as two:
        assert (one.read_text(), two.read_text()) == ("1", "2")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_plain_file_is_refused_without_waiting_and_without_losing_a_descriptor(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for name, reason in (
        ("folder", "a folder"),
        ("pipe", "not a regular file"),
        ("link", "symbolic links"),
        ("absent", "No such file"),
    ):
        with pytest.raises(OSError, match=reason):
            read_plain(tmp_path / name, 10)
    assert read_plain(tmp_path / "file", 3) == b"123"
    assert len(list(Path("/proc/self/fd").iterdir())) == before
