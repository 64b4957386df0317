"""GGUF control vectors are read as repeng and llama.cpp write them; anything else is refused quickly."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest

from steerserve.core.errors import VectorError
from steerserve.model.control_vector import read_control_vector

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

ROW = np.array([1.0, -2.0, 0.5, 4.0], dtype=np.float32)


def write_gguf(
    path: Path, tensors: Mapping[str, Any], *, architecture: str = "controlvector", hint: str | None = "llama"
) -> Path:
    """Write a file as repeng's `export_gguf` does."""
    writer = gguf.GGUFWriter(path, architecture)
    if hint is not None:
        writer.add_string(f"{architecture}.model_hint", hint)
    writer.add_uint32(f"{architecture}.layer_count", len(tensors))
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_directions_are_read_by_their_blocks(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "happy.gguf", {"direction.1": ROW, "direction.12": 2 * ROW})
    found = read_control_vector(file)
    assert {block: row.tolist() for block, row in found.directions.items()} == {1: ROW.tolist(), 12: (2 * ROW).tolist()}
    assert found.model_hint == "llama"
    assert (
        read_control_vector(write_gguf(tmp_path / "no-hint.gguf", {"direction.1": ROW}, hint=None)).model_hint is None
    )


def test_half_precision_is_read_as_numbers(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "half.gguf", {"direction.3": ROW.astype(np.float16)})
    assert read_control_vector(file).directions[3].tolist() == ROW.tolist()
    assert read_control_vector(file).directions[3].dtype == np.float32


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def header(num_tensors: int, num_fields: int, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, num_tensors, num_fields) + rest


ARRAY, UINT8, STRING = 9, 0, 8
HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "no gguf": b"PK\x03\x04" + b"\0" * 64,
    "a pickle": b"\x80\x04\x95" + b"\0" * 64,
    "cut in the header": header(1, 1)[:20],
    "an old version": b"GGUF" + struct.pack("<IQQ", 1, 0, 0) + b"\0" * 64,
    "an exabyte of fields": header(0, 1 << 60),
    "an exabyte of tensors": header(1 << 60, 0),
    "a name of an exabyte": header(0, 1, struct.pack("<Q", 1 << 60) + b"x"),
    "an array of an exabyte": header(0, 1, text("a") + struct.pack("<IIQ", ARRAY, UINT8, 1 << 60)),
    "an array of strings without end": header(0, 1, text("a") + struct.pack("<IIQ", ARRAY, STRING, 1 << 60)),
    "a million small numbers": header(0, 1, text("a") + struct.pack("<IIQ", ARRAY, UINT8, 10**6) + b"\1" * 10**6),
    "a field of no known type": header(0, 1, text("a") + struct.pack("<I", 99) + b"\0" * 64),
    "a tensor beyond the end": header(1, 0, text("direction.1") + struct.pack("<IQIQ", 1, 4, 0, 1 << 40) + b"\0" * 64),
    "a tensor of an exabyte": header(1, 0, text("direction.1") + struct.pack("<IQIQ", 1, 1 << 58, 0, 0) + b"\0" * 64),
    "a tensor of 2**32 dimensions": header(1, 0, text("direction.1") + struct.pack("<I", 2**32 - 1) + b"\0" * 64),
    "a name that is no text": header(1, 0, struct.pack("<Q", 2) + b"\xff\xfe" + b"\0" * 64),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_refused(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "bad.gguf"
    file.write_bytes(HOSTILE[kind])
    with pytest.raises(VectorError, match=r"bad\.gguf cannot be read as a GGUF control vector"):
        read_control_vector(file)


def test_every_cut_of_a_good_file_is_refused_or_as_good_as_whole(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "good.gguf", {"direction.1": ROW}).read_bytes()
    file = tmp_path / "cut.gguf"
    for size in range(0, len(whole), 7):
        file.write_bytes(whole[:size])
        try:
            found = read_control_vector(file)
        except VectorError:
            continue
        assert found.directions[1].tolist() == ROW.tolist()  # only the padding after it was cut


def test_a_model_and_a_file_without_directions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VectorError, match="its architecture is 'llama'"):
        read_control_vector(write_gguf(tmp_path / "model.gguf", {"direction.1": ROW}, architecture="llama"))
    with pytest.raises(VectorError, match=r"no tensor named direction\.N"):
        read_control_vector(write_gguf(tmp_path / "none.gguf", {"direction.x": ROW}))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.gguf"):
        with pytest.raises(VectorError):
            read_control_vector(path)
    with (tmp_path / "huge.gguf").open("wb") as file:
        file.truncate(65 * 1024 * 1024)
    with pytest.raises(VectorError, match="larger than"):
        read_control_vector(tmp_path / "huge.gguf")
