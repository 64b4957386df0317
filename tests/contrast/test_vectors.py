"""Vectors are kept whole under their names, and files that are none change nothing."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import struct
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import safetensors.numpy

from steerserve.contrast.vector_file import MAX_FILE_BYTES, dump_vector, read_vector
from steerserve.contrast.vectors import VectorStore
from steerserve.core.errors import ConflictError, NotFoundError, StartupError, VectorError
from steerserve.steering.lookups import StoredVector
from tests.tiny import HOOK_NAME

if TYPE_CHECKING:
    from pathlib import Path

HEADER = {"format": "steerserve vector 1", "method": "by hand", "created": "1.5"}


def vector(name: str = "formal", *values: float, **fields: Any) -> StoredVector:  # noqa: ANN401 any of StoredVector
    layers = {HOOK_NAME: values or (1.0, -2.5, 0.25)}
    return replace(StoredVector(name, layers, model="tiny", method="by hand", created=1.5), **fields)


@pytest.fixture
def store(tmp_path: Path) -> VectorStore:
    return VectorStore(tmp_path / "dictionaries" / ".vectors")


def test_a_vector_comes_back_as_it_was_put(store: VectorStore) -> None:
    kept = vector(notes={"pooling": "mean"}, layers={HOOK_NAME: (1.0, 0.5), "blocks.1.hook_resid_post": (0.0, 3.0)})
    store.put(kept)
    assert store.find("formal") == kept
    assert VectorStore(store.folder).find("formal") == kept
    assert [file.name for file in store.folder.iterdir()] == ["formal.safetensors"]
    unknown = vector("anyones", model=None)
    store.put(unknown)
    assert store.all() == [unknown, kept]


def test_there_are_none_before_there_is_a_folder(store: VectorStore) -> None:
    assert store.all() == []
    with pytest.raises(NotFoundError, match="No vectors are stored yet"):
        store.find("formal")
    with pytest.raises(NotFoundError):
        store.delete("formal")


def test_a_name_is_given_once_unless_its_vector_is_replaced(store: VectorStore) -> None:
    store.put(vector())
    with pytest.raises(ConflictError) as caught:
        store.put(vector("formal", 9.0))
    assert caught.value.code == "vector_exists"
    assert store.find("formal") == vector()
    store.put(vector("formal", 9.0), replace=True)
    assert store.find("formal") == vector("formal", 9.0)
    assert len(list(store.folder.iterdir())) == 1


def test_what_another_process_did_is_seen(store: VectorStore) -> None:
    other = VectorStore(store.folder)
    store.put(vector())
    assert other.find("formal") == vector()
    store.put(vector("formal", 9.0), replace=True)
    assert other.find("formal") == vector("formal", 9.0)
    store.delete("formal")
    with pytest.raises(NotFoundError):
        other.find("formal")


def test_the_nearest_name_is_told(store: VectorStore) -> None:
    store.put(vector())
    with pytest.raises(NotFoundError, match="Did you mean 'formal'"):
        store.find("fromal")


@pytest.mark.parametrize("name", ["../formal", "a/b", "..", ".hidden", "", "x" * 65, "formal\n", "a\0b", "C:\\x", "é"])
def test_a_name_never_leads_out_of_the_folder(store: VectorStore, name: str) -> None:
    (store.folder.parent).mkdir(parents=True)
    (store.folder.parent / "formal.safetensors").write_bytes(dump_vector(vector()))
    for use in (store.find, store.delete, lambda name: store.put(vector(name))):
        with pytest.raises(NotFoundError):
            use(name)
    assert [path.name for path in store.folder.parent.rglob("*")] == ["formal.safetensors"]


def safetensors_file(tensors: dict[str, Any], header: dict[str, str] | None = None) -> bytes:
    return safetensors.numpy.save(tensors, HEADER if header is None else header)


def with_header(header: dict[str, Any], body: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


ROW = np.ones(3, dtype=np.float32)
HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not a safetensors"),
    "a pickle": (b"\x80\x04\x95\x0c\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix", "not a safetensors"),
    "cut": (dump_vector(vector())[:-4], "not a safetensors"),
    "a header of an exabyte": (struct.pack("<Q", 1 << 60) + b"{}", "not a safetensors"),
    "a header without end": (with_header({})[:-1], "not a safetensors"),
    "tensors that overlap": (
        with_header({name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in ("a", "b")}, b"\0" * 4),
        "not a safetensors",
    ),
    "a tensor of an exabyte": (
        with_header({HOOK_NAME: {"dtype": "F32", "shape": [1 << 58], "data_offsets": [0, 1 << 60]}}, b"\0" * 4),
        "not a safetensors",
    ),
    "somebody else's": (safetensors_file({"W_dec": ROW}, {"format": "pt"}), "does not name the format"),
    "no words": (safetensors_file({HOOK_NAME: ROW}, {}), "does not name the format"),
    "no date": (safetensors_file({HOOK_NAME: ROW}, HEADER | {"created": "soon"}), "no time of creation"),
    "no hook point": (safetensors_file({"../../etc": ROW}), "not a hook point"),
    "nothing": (safetensors_file({}), "no tensors"),
    "integers": (safetensors_file({HOOK_NAME: np.ones(3, dtype=np.int64)}), "not a row of floats"),
    "a matrix": (
        safetensors_file({HOOK_NAME: np.ones((3, 3), dtype=np.float32)}),
        "not a row of floats",
    ),
    "no values": (safetensors_file({HOOK_NAME: ROW[:0]}), "not a row of floats"),
    "infinity": (safetensors_file({HOOK_NAME: ROW * np.inf}), "not finite"),
    "nan": (safetensors_file({HOOK_NAME: ROW * np.nan}), "not finite"),
    "too large": (safetensors_file({HOOK_NAME: ROW * 1e7}), "over 1e+06"),
    "zero": (safetensors_file({HOOK_NAME: ROW * 0}), "zero everywhere"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_file_that_is_no_vector_is_refused_and_the_others_are_listed(
    store: VectorStore, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    content, reason = HOSTILE[kind]
    store.put(vector("good"))
    (store.folder / "bad.safetensors").write_bytes(content)
    with pytest.raises(VectorError, match=reason.replace("+", r"\+")) as caught:
        store.find("bad")
    assert caught.value.message.startswith("The vector file bad.safetensors cannot be used: ")
    assert store.all() == [vector("good")]
    assert "bad.safetensors" in caplog.text


def test_links_pipes_folders_and_huge_files_are_refused(store: VectorStore, tmp_path: Path) -> None:
    store.put(vector("good"))
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes(dump_vector(vector()))
    (store.folder / "link.safetensors").symlink_to(outside)
    os.mkfifo(store.folder / "pipe.safetensors")
    (store.folder / "folder.safetensors").mkdir()
    with (store.folder / "huge.safetensors").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    for name in ("link", "pipe", "folder", "huge"):
        with pytest.raises(VectorError):
            store.find(name)
    assert store.all() == [vector("good")]


@pytest.mark.parametrize("replacing", [True, False])
@pytest.mark.parametrize("is_above", [True, False])
def test_a_file_in_place_of_the_folder_is_a_fault_of_the_server(
    tmp_path: Path, replacing: bool, is_above: bool
) -> None:
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    folder = tmp_path / "file" / ".vectors" if is_above else tmp_path / "file"
    with pytest.raises(StartupError, match="cannot be written") as caught:
        VectorStore(folder).put(vector(), replace=replacing)
    assert (caught.value.param, caught.value.code) == (None, "vectors_unwritable")


@pytest.mark.parametrize("replacing", [True, False])
def test_a_full_disk_is_a_fault_of_the_server_and_leaves_nothing(
    store: VectorStore, replacing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pathlib.Path, "write_bytes", refuse)
    with pytest.raises(StartupError, match="No space left") as caught:
        store.put(vector(), replace=replacing)
    assert caught.value.code == "vectors_unwritable"
    assert not list(store.folder.iterdir())


def test_a_file_is_the_same_for_the_same_vector(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(dump_vector(vector(notes={"a": "b"})))
    assert read_vector(file, "formal") == vector(notes={"a": "b"})
    assert vector("other").sha256 == vector().sha256 != vector("formal", 1.0, -2.5, 0.26).sha256
