"""The stored vectors: a folder of safetensors files, each with one name's directions and where they came from."""

from __future__ import annotations

import contextlib
import difflib
import logging
import math
import os
import re
import stat
import threading
from typing import TYPE_CHECKING, Any

import jiter
import numpy as np
import safetensors.numpy

from steerserve.core.errors import ConflictError, NotFoundError, VectorError
from steerserve.steering.edits import MAX_SCALE
from steerserve.steering.vectors import StoredVector

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

VECTOR_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
FOLDER = ".vectors"
"""Below the first of `dictionary_dirs`."""
MAX_FILE_BYTES = 64 * 1024 * 1024
_SUFFIX = ".safetensors"
_FORMAT = "steerserve vector 1"
_KNOWN = frozenset({"format", "model", "method", "created"})
_HOOK_NAME = re.compile(r"^blocks\.\d{1,4}\.[a-z_.]{1,64}$")
_LENGTH_BYTES = 8
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
_NUM_SHOWN = 20

_log = logging.getLogger(__name__)


class VectorStore:
    """One folder. Any thread, several processes: a file is there whole or not at all."""

    def __init__(self, folder: Path) -> None:
        """Keep vectors in `folder`, which is made when the first one comes."""
        self.folder = folder
        self._read: dict[str, tuple[tuple[int, int, int], StoredVector]] = {}
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """Return the names of all files, whether they can be used or not."""
        try:
            found = [file.stem for file in self.folder.iterdir() if file.suffix == _SUFFIX]
        except OSError:  # there is no folder yet
            return []
        return sorted(name for name in found if re.fullmatch(VECTOR_NAME, name))

    def all(self) -> list[StoredVector]:
        """Return the vectors that can be used; the others are named in the log."""
        found = []
        for name in self.names():
            try:
                found.append(self.find(name))
            except VectorError as error:
                _log.warning("%s", error.message)
            except NotFoundError:  # deleted since
                continue
        return found

    def find(self, name: str) -> StoredVector:
        """Return a vector; from memory where the file is as it was.

        Raises:
            NotFoundError: there is none of that name.
            VectorError: its file is damaged or something else.
        """
        path = self._path(name)
        try:
            status = path.lstat()
        except OSError:
            raise self._unknown(name) from None
        stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
        with self._lock:
            known = self._read.get(name)
        if known is not None and known[0] == stamp:
            return known[1]
        vector = read_vector(path, name)
        with self._lock:
            self._read[name] = (stamp, vector)
        return vector

    def put(self, vector: StoredVector, *, replace: bool = False) -> None:
        """Keep a vector under its name.

        Raises:
            ConflictError: there is one of that name, and it is not to be replaced.
            VectorError: it cannot be written.
        """
        path = self._path(vector.name)
        aside = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            aside.write_bytes(dump_vector(vector))
            if replace:
                aside.replace(path)
            else:
                os.link(aside, path)  # unlike a rename it fails where there is one
        except FileExistsError as error:
            message = f"There is a vector {vector.name!r} already. Choose another name, or ask to replace it."
            raise ConflictError(message, param="name", code="vector_exists") from error
        except OSError as error:
            message = f"The vector {vector.name!r} cannot be written to {self.folder}: {error.strerror}."
            raise VectorError(message, param="name") from error
        finally:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        """Forget a vector; requests under way have its values already.

        Raises:
            NotFoundError: there is none of that name.
        """
        try:
            self._path(name).unlink()
        except OSError:
            raise self._unknown(name) from None
        with self._lock:
            self._read.pop(name, None)

    def _path(self, name: str) -> Path:
        if not re.fullmatch(VECTOR_NAME, name):
            raise self._unknown(name)
        return self.folder / f"{name}{_SUFFIX}"

    def _unknown(self, name: str) -> NotFoundError:
        known = self.names()
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        shown = ", ".join(known[:_NUM_SHOWN]) or "none yet"
        message = f"There is no stored vector {name[:100]!r}.{hint} There are: {shown}."
        return NotFoundError(message, param="name", code="vector_not_found")


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
    data = read_limited(path)
    try:
        tensors = safetensors.numpy.load(data)
    except Exception as error:  # what it raises depends on the damage
        raise unusable(path, f"it is no safetensors file ({error})") from error
    header = _metadata(data)
    if header.get("format") != _FORMAT:
        raise unusable(path, f"it does not say that it is a {_FORMAT!r}")
    try:
        created = float(header.get("created", ""))
    except ValueError as error:
        raise unusable(path, "it does not say when it was made") from error
    layers = {hook_name: values_of(path, hook_name, tensor) for hook_name, tensor in tensors.items()}
    strange = next((hook_name for hook_name in layers if not _HOOK_NAME.fullmatch(hook_name)), None)
    if strange is not None or not layers:
        raise unusable(path, f"{str(strange)[:100]!r} is no hook point" if layers else "there is nothing in it")
    return StoredVector(
        name=name,
        layers=layers,
        model=header.get("model"),
        method=header.get("method", "unknown"),
        created=created if math.isfinite(created) else 0.0,
        notes={key: value for key, value in header.items() if key not in _KNOWN},
    )


def read_limited(path: Path) -> bytes:
    """Read a plain file of reasonable size, no link and no pipe.

    Raises:
        VectorError: it is something else.
    """
    try:
        descriptor = os.open(path, _FLAGS)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise unusable(path, "it is no plain file")
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise unusable(path, error.strerror or "it cannot be read") from error
    if len(data) > MAX_FILE_BYTES:
        raise unusable(path, f"it has over {MAX_FILE_BYTES} bytes")
    return data


def values_of(path: Path, where: str, tensor: Any) -> tuple[float, ...]:  # noqa: ANN401 an array of any type
    """Return an array as numbers that an edit may add.

    Raises:
        VectorError: it is no row of floats, or they are zero, infinite or too large.
    """
    if tensor.ndim != 1 or tensor.dtype.kind != "f" or not tensor.size:
        raise unusable(path, f"{where[:100]} is no row of floating-point numbers")
    row = tensor.astype(np.float32)
    if not np.isfinite(row).all() or np.abs(row).max() > MAX_SCALE or not row.any():
        raise unusable(
            path, f"{where[:100]} is zero everywhere, or holds numbers that are not finite or over {MAX_SCALE:g}"
        )
    return tuple(map(float, row))


def unusable(path: Path, reason: str) -> VectorError:
    """Return the error that says why a file is no vector."""
    return VectorError(f"The vector file {path.name} cannot be used: {reason}.")


def _metadata(data: bytes) -> Mapping[str, str]:
    """Return the texts in the header of a file that the library has read."""
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    header: dict[str, Any] = jiter.from_json(data[_LENGTH_BYTES : _LENGTH_BYTES + length])
    found: dict[str, str] = header.get("__metadata__") or {}
    return found
