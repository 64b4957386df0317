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
_OWN_KEYS = frozenset({"format", "model", "method", "created"})
_HOOK_NAME = re.compile(r"blocks\.\d{1,4}\.[a-z_.]{1,64}")
_LENGTH_BYTES = 8
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC


def dump_vector(vector: StoredVector) -> bytes:
    """Return a vector as the bytes of its file."""
    tensors = {hook_name: np.array(values, dtype=np.float32) for hook_name, values in vector.layers.items()}
    own = {"format": _FORMAT, "method": vector.method, "created": repr(vector.created)}
    model = {"model": vector.model} if vector.model is not None else {}
    return safetensors.numpy.save(tensors, {**vector.notes, **own, **model})


def read_vector(path: Path, name: str) -> StoredVector:
    """Read the file of a vector.

    Raises:
        VectorError: the file is something else, damaged, too large or not a regular file.
    """
    data = _read_limited(path)
    try:
        tensors = safetensors.numpy.load(data)
    except Exception as error:  # the type depends on the damage
        raise _unusable(path, f"it is not a safetensors file ({error})") from error
    header = _metadata(data)
    if header.get("format") != _FORMAT:
        raise _unusable(path, f"its header does not name the format {_FORMAT!r}")
    try:
        created = float(header.get("created", ""))
    except ValueError as error:
        raise _unusable(path, "its header has no time of creation") from error
    if not tensors:
        raise _unusable(path, "it has no tensors")
    for hook_name in tensors:
        if not _HOOK_NAME.fullmatch(hook_name):
            raise _unusable(path, f"{hook_name[:100]!r} is not a hook point")
    layers = {name: _values_of(path, name, tensors[name]) for name in sorted(tensors, key=_block_and_name)}
    return StoredVector(
        name=name,
        layers=layers,
        model=header.get("model"),
        method=header.get("method", "unknown"),
        created=created if math.isfinite(created) else 0.0,
        notes={key: value for key, value in header.items() if key not in _OWN_KEYS},
    )


def import_control_vector(path: Path, name: str, created: float) -> StoredVector:
    """Read a GGUF control vector as a stored vector: direction N is added to the output of block N.

    Raises:
        VectorError: the file is not a control vector, is damaged, or its directions cannot be used.
    """
    control_vector = read_control_vector(path)
    return StoredVector(
        name=name,
        layers={
            f"blocks.{block}.hook_resid_post": _values_of(path, f"direction.{block}", control_vector.directions[block])
            for block in sorted(control_vector.directions)
        },
        model=None,
        method="control vector",
        created=created,
        notes={"model_hint": control_vector.model_hint} if control_vector.model_hint is not None else {},
    )


def _read_limited(path: Path) -> bytes:
    """Read a regular file of limited size, not a link or a pipe.

    Raises:
        VectorError: the file is something else, or too large.
    """
    try:
        descriptor = os.open(path, _FLAGS)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise _unusable(path, "it is not a regular file")
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise _unusable(path, error.strerror or "it cannot be read") from error
    if len(data) > MAX_FILE_BYTES:
        raise _unusable(path, f"it has more than {MAX_FILE_BYTES} bytes")
    return data


def _values_of(path: Path, name: str, tensor: Any) -> tuple[float, ...]:  # noqa: ANN401 an array of any type
    """Return an array as numbers that an edit may add.

    Raises:
        VectorError: it is not a row of floats, or they are all zero, not finite or too large.
    """
    if tensor.ndim != 1 or tensor.dtype.kind != "f" or not tensor.size:
        raise _unusable(path, f"{name[:100]} is not a row of floats")
    row = tensor.astype(np.float32)
    if not np.isfinite(row).all() or np.abs(row).max() > MAX_SCALE or not row.any():
        raise _unusable(
            path, f"{name[:100]} is zero everywhere, or has numbers that are not finite or over {MAX_SCALE:g}"
        )
    return tuple(map(float, row))


def _unusable(path: Path, reason: str) -> VectorError:
    """Return the error for a file that cannot be used."""
    return VectorError(f"The vector file {path.name} cannot be used: {reason}.")


def _block_and_name(hook_name: str) -> tuple[int, str]:
    return int(hook_name.split(".")[1]), hook_name


def _metadata(data: bytes) -> Mapping[str, str]:
    """Return the texts in the header of a file that the library could read."""
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    header: dict[str, Any] = jiter.from_json(data[_LENGTH_BYTES : _LENGTH_BYTES + length])
    metadata: dict[str, str] = header.get("__metadata__") or {}
    return metadata
