"""Reads weights files: checks the header first, reads the file once, and hashes the very bytes that are used.

Only safetensors. The tensors lie in memory of our own, so a file that is rewritten or cut later changes nothing.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

import jiter
import safetensors.torch
import torch

from steerserve.dictionaries.files import refusal
from steerserve.model.fitness import free_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from io import BufferedReader

    from torch import Tensor

    from steerserve.core.errors import DictionarySourceError
    from steerserve.dictionaries.files import SourceFolder

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 1 << 20
_MAX_DIMENSIONS = 8
_LARGEST_SIZE = 1 << 48
_NUM_OFFSETS = 2
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_FLOAT32_BYTES = 4
_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Weights:
    """The tensors of a weights file."""

    tensors: dict[str, Tensor]
    """Tensors in the dtype they are stored in, in memory that nothing else can change."""
    sha256: str
    """SHA-256 of the file."""


@dataclass(frozen=True, slots=True)
class SizeLimit:
    """Limit of a dictionary's size."""

    max_bytes: int
    """Bytes of the largest dictionary, in float32."""
    device: torch.device = _CPU
    """Device that the dictionary is loaded on."""

    def check(self, source: str, num_values: int, stored_bytes: int) -> None:
        """Check that `num_values` values, stored in `stored_bytes`, are within the limit and fit into memory.

        Raises:
            DictionarySourceError: they are not, or do not fit.
        """
        needed = _FLOAT32_BYTES * num_values
        if needed > self.max_bytes:
            limit = f"this server loads at most {_size(self.max_bytes)} (max_dictionary_bytes)"
            raise refusal(source, f"has {_size(needed)} as float32, and {limit}")
        # While it is loaded, memory holds the file's bytes and the tensors in float32.
        for device, num_bytes in {self.device: needed, _CPU: stored_bytes + needed}.items():
            if num_bytes > (free := free_bytes(device)):
                raise refusal(source, f"needs {_size(num_bytes)} on {device} to load, and {_size(free)} are free")


@dataclass(frozen=True, slots=True)
class _TensorEntry:
    """The header's entry for one tensor."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    """Index of its first byte, counted from the end of the header."""
    end: int
    """Index behind its last byte."""

    @property
    def num_values(self) -> int:
        return math.prod(self.shape)

    def read(self, data: Tensor) -> Tensor:
        """Return the tensor: a view of the bytes after the header if they are aligned, else a copy."""
        part = data[self.begin : self.end]
        is_aligned = part.storage_offset() % self.dtype.itemsize == 0
        return (part if is_aligned else part.clone()).view(self.dtype).view(self.shape)


def read_weights(folder: SourceFolder, name: str, limit: SizeLimit) -> Weights:
    """Read a safetensors file.

    The library's own function copies all tensors while every other thread of the process waits.

    Raises:
        DictionarySourceError: the file is damaged, not a safetensors file, or too large.
    """
    with folder.opened(name) as (file, size):
        head = _read_head(file, size, folder, name)
        entries = _read_entries(head[_LENGTH_BYTES:], size - len(head), folder, name)
        limit.check(folder.source, sum(entry.num_values for entry in entries), size)
        file.seek(0)
        data = torch.empty(size, dtype=torch.uint8)
        num_read = file.readinto(data.numpy().data)
    if num_read != size or data[: len(head)].numpy().tobytes() != head:
        raise _damaged(folder, name, "it changed while it was read")
    tensors = {entry.name: entry.read(data[len(head) :]) for entry in entries}
    return Weights(tensors, hashlib.sha256(data.numpy().data).hexdigest())


def dump_weights(tensors: Mapping[str, Tensor]) -> bytes:
    """Return tensors as the bytes of a safetensors file; the same tensors give the same bytes."""
    return safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def _read_head(file: BufferedReader, size: int, folder: SourceFolder, name: str) -> bytes:
    """Return the header with the eight bytes before it, which hold its length."""
    start = file.read(_LENGTH_BYTES)
    length = int.from_bytes(start, "little")
    if len(start) < _LENGTH_BYTES or length > min(_MAX_HEADER_BYTES, size - _LENGTH_BYTES):
        raise _damaged(folder, name, "it does not begin as a safetensors file does (pickles are never loaded)")
    return start + file.read(length)


def _read_entries(header: bytes, num_bytes: int, folder: SourceFolder, name: str) -> list[_TensorEntry]:
    """Return the header's entries, which must cover the bytes after the header without a gap."""
    try:
        described = jiter.from_json(header, allow_inf_nan=False, catch_duplicate_keys=True)
    except ValueError as error:
        raise _damaged(folder, name, f"its header is not JSON: {error}") from error
    if not isinstance(described, dict):
        raise _damaged(folder, name, "its header is not a JSON object")
    described.pop("__metadata__", None)
    entries = [_read_entry(key, entry, folder, name) for key, entry in described.items()]
    end = 0
    for entry in sorted(entries, key=lambda entry: (entry.begin, entry.end)):
        if entry.begin != end or entry.end - entry.begin != entry.num_values * entry.dtype.itemsize:
            raise _damaged(folder, name, f"its header misplaces {entry.name[:60]!r}")
        end = entry.end
    if end != num_bytes:
        raise _damaged(folder, name, f"its header describes {end} bytes, and {num_bytes} follow it")
    return entries


def _read_entry(key: str, entry: object, folder: SourceFolder, name: str) -> _TensorEntry:
    fields = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = _DTYPES.get(str(fields.get("dtype"))), fields.get("shape"), fields.get("data_offsets")
    if dtype is None or not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != _NUM_OFFSETS:
        raise _damaged(folder, name, f"its header gives {key[:60]!r} no known type and shape")
    if 0 in shape:
        # The other sizes of an empty tensor take no bytes of the file, so nothing bounds them. No dictionary has one.
        raise _damaged(folder, name, f"its tensor {key[:60]!r} is empty: its shape is {shape}")
    return _TensorEntry(key, dtype, tuple(shape), *offsets)


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    if not isinstance(value, list) or len(value) > _MAX_DIMENSIONS:
        return False
    return all(type(part) is int and 0 <= part < _LARGEST_SIZE for part in value)


def _damaged(folder: SourceFolder, name: str, reason: str) -> DictionarySourceError:
    return folder.refused(name, f"is damaged: {reason}")


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes < 10**15 else "more than a petabyte"
