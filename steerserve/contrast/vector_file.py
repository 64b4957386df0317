"""A stored vector as a file: safetensors with one tensor for each hook point, the rest in the header."""

from __future__ import annotations

import math
import os
import re
import stat
from typing import TYPE_CHECKING, Any

import jiter
import numpy as np
import safetensors.numpy

from steerserve.core.errors import VectorError
from steerserve.model.control_vector import read_control_vector
from steerserve.steering.lookups import StoredVector
from steerserve.wire.edits import MAX_SCALE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MAX_FILE_BYTES = 64 * 1024 * 1024
_FORMAT = "steerserve vector 1"
_KNOWN = frozenset({"format", "model", "method", "created"})
_HOOK_NAME = re.compile(r"blocks\.\d{1,4}\.[a-z_.]{1,64}")
_LENGTH_BYTES = 8
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC


def dump_vector(vector: StoredVector) -> bytes:
    """Write a vector as safetensors: a tensor for each hook point, the rest in the header."""
    tensors = {hook_name: np.array(values, dtype=np.float32) for hook_name, values in vector.layers.items()}
    known = {"format": _FORMAT, "method": vector.method, "created": repr(vector.created)}
    model = {"model": vector.model} if vector.model is not None else {}
    return safetensors.numpy.save(tensors, {**vector.notes, **known, **model})


def read_vector(path: Path, name: str) -> StoredVector:
    """Read what `dump_vector` wrote.

    Raises:
        VectorError: the file is something else, damaged, too large or no plain file.
    """
    data = _read_limited(path)
    try:
        tensors = safetensors.numpy.load(data)
    except Exception as error:  # what it raises depends on the damage
        raise _unusable(path, f"it is no safetensors file ({error})") from error
    header = _metadata(data)
    if header.get("format") != _FORMAT:
        raise _unusable(path, f"it does not say that it is a {_FORMAT!r}")
    try:
        created = float(header.get("created", ""))
    except ValueError as error:
        raise _unusable(path, "it does not say when it was made") from error
    strange = next((hook_name for hook_name in tensors if not _HOOK_NAME.fullmatch(hook_name)), None)
    if strange is not None or not tensors:
        raise _unusable(path, f"{str(strange)[:100]!r} is no hook point" if tensors else "there is nothing in it")
    layers = {name: _values_of(path, name, tensors[name]) for name in sorted(tensors, key=_block_and_name)}
    return StoredVector(
        name=name,
        layers=layers,
        model=header.get("model"),
        method=header.get("method", "unknown"),
        created=created if math.isfinite(created) else 0.0,
        notes={key: value for key, value in header.items() if key not in _KNOWN},
    )


def import_control_vector(path: Path, name: str, created: float) -> StoredVector:
    """Read a GGUF control vector as a stored one: direction N is added to what block N puts out.

    Raises:
        VectorError: the file is none, damaged, or its directions are none.
    """
    found = read_control_vector(path)
    return StoredVector(
        name=name,
        layers={
            f"blocks.{block}.hook_resid_post": _values_of(path, f"direction.{block}", found.directions[block])
            for block in sorted(found.directions)
        },
        model=None,
        method="control vector",
        created=created,
        notes={"model_hint": found.model_hint} if found.model_hint is not None else {},
    )


def _read_limited(path: Path) -> bytes:
    """Read a plain file of reasonable size, no link and no pipe.

    Raises:
        VectorError: it is something else.
    """
    try:
        descriptor = os.open(path, _FLAGS)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise _unusable(path, "it is no plain file")
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise _unusable(path, error.strerror or "it cannot be read") from error
    if len(data) > MAX_FILE_BYTES:
        raise _unusable(path, f"it has over {MAX_FILE_BYTES} bytes")
    return data


def _values_of(path: Path, where: str, tensor: Any) -> tuple[float, ...]:  # noqa: ANN401 an array of any type
    """Return an array as numbers that an edit may add.

    Raises:
        VectorError: it is no row of floats, or they are zero, infinite or too large.
    """
    if tensor.ndim != 1 or tensor.dtype.kind != "f" or not tensor.size:
        raise _unusable(path, f"{where[:100]} is no row of floating-point numbers")
    row = tensor.astype(np.float32)
    if not np.isfinite(row).all() or np.abs(row).max() > MAX_SCALE or not row.any():
        raise _unusable(
            path, f"{where[:100]} is zero everywhere, or holds numbers that are not finite or over {MAX_SCALE:g}"
        )
    return tuple(map(float, row))


def _unusable(path: Path, reason: str) -> VectorError:
    """Return the error that says why a file is no vector."""
    return VectorError(f"The vector file {path.name} cannot be used: {reason}.")


def _block_and_name(hook_name: str) -> tuple[int, str]:
    return int(hook_name.split(".")[1]), hook_name


def _metadata(data: bytes) -> Mapping[str, str]:
    """Return the texts in the header of a file that the library has read."""
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    header: dict[str, Any] = jiter.from_json(data[_LENGTH_BYTES : _LENGTH_BYTES + length])
    found: dict[str, str] = header.get("__metadata__") or {}
    return found
