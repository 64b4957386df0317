"""Weight files are read as the safetensors library reads them."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load, load_file, save_file

from steerserve.core.errors import DictionarySourceError
from steerserve.dictionaries.files import SourceFolder
from steerserve.dictionaries.weights import SizeLimit, dump_weights, read_weights

if TYPE_CHECKING:
    from pathlib import Path

LIMIT = SizeLimit(1 << 20)


def folder(path: Path) -> SourceFolder:
    return SourceFolder(path, f"path:{path}", path.name, (path,))


def test_every_type_is_read_as_the_library_reads_it(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(7, 5, generator=generator)
    floats = {str(dtype): numbers.to(dtype) for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)}
    others = {"counts": torch.arange(-3, 4), "bytes": torch.arange(5).to(torch.uint8), "flags": numbers > 0}
    save_file({**floats, **others, "k": torch.tensor(8)}, tmp_path / "x", {"format": "pt"})
    read = read_weights(folder(tmp_path), "x", LIMIT)
    expected = load_file(tmp_path / "x")
    assert read.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert read.tensors[name].dtype == tensor.dtype
        assert read.tensors[name].shape == tensor.shape
        assert torch.equal(read.tensors[name], tensor)
    assert read.sha256 == hashlib.sha256((tmp_path / "x").read_bytes()).hexdigest()


def test_a_tensor_may_begin_at_an_odd_byte(tmp_path: Path) -> None:
    entries = {
        "flag": {"dtype": "BOOL", "shape": [1], "data_offsets": [0, 1]},
        "values": {"dtype": "F32", "shape": [2, 2], "data_offsets": [1, 17]},
    }
    header = json.dumps(entries).encode()
    (tmp_path / "x").write_bytes(struct.pack("<Q", len(header)) + header + b"\1" + struct.pack("<4f", 1, 2, 3, 4))
    read = read_weights(folder(tmp_path), "x", LIMIT)
    assert read.tensors["values"].tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert read.tensors["flag"].tolist() == [True]


@pytest.mark.parametrize("shape", [(0,), (0, 10**9), (10**9, 0)])
def test_an_empty_tensor_is_refused_since_its_other_sizes_cost_nothing(tmp_path: Path, shape: tuple[int, ...]) -> None:
    save_file({"W_enc": torch.zeros(shape)}, tmp_path / "x")
    with pytest.raises(DictionarySourceError, match="'W_enc' is empty"):
        read_weights(folder(tmp_path), "x", LIMIT)


def test_a_folder_that_becomes_a_link_while_its_file_is_opened_leads_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("inside", "outside"):
        (tmp_path / name).mkdir()
        save_file({"k": torch.tensor(8)}, tmp_path / name / "x")
    plain_open = os.open

    def swap_and_open(path: Path, flags: int) -> int:
        (tmp_path / "inside").rename(tmp_path / "moved")
        (tmp_path / "inside").symlink_to(tmp_path / "outside")
        return plain_open(path, flags)

    monkeypatch.setattr("steerserve.dictionaries.files.os.open", swap_and_open)
    with pytest.raises(DictionarySourceError, match="outside the configured folders"):
        read_weights(folder(tmp_path / "inside"), "x", LIMIT)


def test_what_is_written_is_the_same_for_the_same_tensors_whatever_their_order() -> None:
    tensors = {"b": torch.ones(3), "a": torch.arange(6.0).reshape(2, 3).T}
    written = dump_weights(tensors)
    assert dump_weights(dict(reversed(tensors.items()))) == written
    assert torch.equal(load(written)["a"], tensors["a"])
