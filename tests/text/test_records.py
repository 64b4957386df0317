"""A file of records that several runs write, some of which are killed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from steerserve.core.errors import CorpusError
from steerserve.text.records import RecordFile


def write(path: Path, *texts: str) -> None:
    with RecordFile(path) as file:
        file.open()
        for text in texts:
            file.add(file.num_seen, {"text": text})


def test_a_run_takes_up_behind_the_last_record_and_the_file_has_its_name_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.jsonl"
    write(path, "one", "two")
    assert not path.exists()
    with RecordFile(path) as file:
        assert [record["text"] for record in file.open()] == ["one", "two"]
        assert (file.num_seen, file.is_whole) == (2, False)
        file.add(5, {"text": "six"})
        assert file.num_seen == 6
        file.finish()
        assert file.is_whole
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["number"] for line in lines] == [0, 1, 5]
    assert [file.name for file in path.parent.iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize(
    "left", ['{"text": "thr', '{"text": "thr\u00e9', "\0\0\0\n", '{"text": "three"}\n', "[]\n", "3\n"]
)
def test_what_a_kill_or_a_crash_left_half_written_is_dropped(tmp_path: Path, left: str) -> None:
    path = tmp_path / "a.jsonl"
    write(path, "one", "two")
    part = tmp_path / "a.jsonl.part"
    part.write_bytes(part.read_bytes() + left.encode()[: -1 if left.endswith("\u00e9") else None])
    write(path, "three")
    with RecordFile(path) as file:
        assert [(record["number"], record["text"]) for record in file.open()] == [(0, "one"), (1, "two"), (2, "three")]


def test_a_record_is_on_its_way_to_the_disk_at_once(tmp_path: Path) -> None:
    with RecordFile(tmp_path / "a.jsonl") as file:
        file.open()
        file.add(0, {"text": "one"})
        assert "one" in (tmp_path / "a.jsonl.part").read_text(encoding="utf-8")


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with RecordFile(tmp_path / "file" / "a.jsonl") as file, pytest.raises(CorpusError, match="cannot be written"):
        file.open()
    with pytest.raises(CorpusError, match="is not open"):
        file.add(0, {})
