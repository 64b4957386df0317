"""Weight files: looked at before they are read, read once, and hashed as the very bytes that are then used.

Only safetensors. What is read stays in memory of our own: a file that is rewritten or cut later changes nothing.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jiter
import safetensors.torch
import torch

from steerserve.dictionaries.files import refusal
from steerserve.model.fitness import free_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import BinaryIO

    from torch import Tensor

    from steerserve.core.errors import DictionarySourceError
    from steerserve.dictionaries.files import SourceFolder

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 1 << 20
_MAX_DIMENSIONS = 8
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_FLOAT32_BYTES = 4
_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Weights:
    """Tensors, and the name of their contents."""

    tensors: dict[str, Tensor]
    """As they are stored, in memory of their own."""
    sha256: str
    """Of the file."""


@dataclass(frozen=True, slots=True)
class Room:
    """How large a dictionary may be."""

    max_bytes: int
    """As float32."""
    device: torch.device = _CPU

    def check(self, source: str, num_values: int, stored_bytes: int) -> None:
        """Check that so many values, stored in so many bytes, may be loaded and fit into memory.

        Raises:
            DictionarySourceError: they do not.
        """
        needed = _FLOAT32_BYTES * num_values
        if needed > self.max_bytes:
            limit = f"this server loads at most {_size(self.max_bytes)} (max_dictionary_bytes)"
            raise refusal(source, f"has {_size(needed)} as float32, and {limit}")
        # While it is loaded there are the file's bytes, the tensors parsed from them, and those in float32.
        for device, wanted in {self.device: needed, _CPU: 2 * stored_bytes + needed}.items():
            if wanted > (free := free_bytes(device)):
                raise refusal(source, f"takes {_size(wanted)} on {device} to load, and {_size(free)} are free")


def read_weights(folder: SourceFolder, name: str, room: Room) -> Weights:
    """Read a safetensors file.

    Raises:
        DictionarySourceError: it is cut, damaged, something else, or too large.
    """
    with folder.opened(name) as (file, size):
        head, entries = _read_header(file, size, folder, name)
        counts = [_count(entry, folder, name) for key, entry in entries.items() if key != "__metadata__"]
        stored_bytes = sum(num_values * item_bytes for num_values, item_bytes in counts)
        if stored_bytes != size - len(head):
            raise _damaged(folder, name, f"its header speaks of {stored_bytes} bytes, and {size - len(head)} follow it")
        room.check(folder.source, sum(num_values for num_values, _ in counts), stored_bytes)
        file.seek(0)
        data = file.read(size)
    if len(data) != size or not data.startswith(head):
        raise _damaged(folder, name, "it changed while it was read")
    try:
        return parse_weights(data)
    except Exception as error:  # what it raises depends on the damage
        raise _damaged(folder, name, str(error)) from error


def parse_weights(data: bytes) -> Weights:
    """Read safetensors from memory; the tensors do not share it."""
    return Weights(safetensors.torch.load(data), hashlib.sha256(data).hexdigest())


def dump_weights(tensors: Mapping[str, Tensor]) -> bytes:
    """Write tensors as safetensors, the same bytes for the same tensors."""
    return safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def _read_header(file: BinaryIO, size: int, folder: SourceFolder, name: str) -> tuple[bytes, dict[str, Any]]:
    start = file.read(_LENGTH_BYTES)
    length = int.from_bytes(start, "little")
    if len(start) < _LENGTH_BYTES or length > min(_MAX_HEADER_BYTES, size - _LENGTH_BYTES):
        raise _damaged(folder, name, "it does not begin as a safetensors file does (pickles are never loaded)")
    header = file.read(length)
    try:
        entries = jiter.from_json(header, allow_inf_nan=False, catch_duplicate_keys=True)
    except ValueError as error:
        raise _damaged(folder, name, f"its header is no JSON: {error}") from error
    if not isinstance(entries, dict):
        raise _damaged(folder, name, "its header is no JSON object")
    return start + header, entries


def _count(entry: object, folder: SourceFolder, name: str) -> tuple[int, int]:
    """Return how many values a tensor has, and the size of each."""
    found = entry if isinstance(entry, dict) else {}
    shape, item_bytes = found.get("shape"), _ITEM_BYTES.get(str(found.get("dtype")))
    is_shape = isinstance(shape, list) and all(type(part) is int and 0 <= part < 1 << 48 for part in shape)
    if item_bytes is None or not is_shape or len(found["shape"]) > _MAX_DIMENSIONS:
        raise _damaged(folder, name, "its header describes a tensor of no known type and shape")
    return math.prod(found["shape"]), item_bytes


def _damaged(folder: SourceFolder, name: str, reason: str) -> DictionarySourceError:
    return folder.refused(name, f"is missing, cut or damaged: {reason}")


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes < 10**15 else "more than a petabyte"
