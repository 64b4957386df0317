"""Reads GGUF control vectors, as repeng and llama.cpp write them: one direction for the output of each block."""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np

from steerserve.core.errors import VectorError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

_ARCHITECTURE = "controlvector"
_DIRECTION = re.compile(r"^direction\.(\d{1,4})$")
_MAX_BYTES = 64 * 1024 * 1024
_MAX_READS = 100_000
"""Largest number of values in a header; a real one has a few hundred."""


@dataclass(frozen=True, slots=True)
class ControlVector:
    """The contents of a file."""

    directions: Mapping[int, NDArray[np.float32]]
    """Vector to add to the output of each block. Source: llama.cpp's `build_cvec` and repeng's `ControlModel`."""
    model_hint: str | None
    """The architecture that the vector was made for, such as llama."""


def read_control_vector(path: Path) -> ControlVector:
    """Read a control vector.

    Raises:
        VectorError: the file is not a control vector, is damaged, or is too large.
    """
    _check_size(path)
    try:
        reader = _BoundedReader(path)
        directions = {
            int(match[1]): np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
            for tensor in reader.tensors
            if (match := _DIRECTION.fullmatch(tensor.name))
        }
        architecture, hint = (_text(reader, key) for key in ("general.architecture", f"{_ARCHITECTURE}.model_hint"))
    except Exception as error:  # the library raises many kinds of errors on files that it cannot read
        raise _unusable(path, str(error).splitlines()[0] if str(error) else type(error).__name__) from error
    if architecture != _ARCHITECTURE:
        raise _unusable(path, f"its architecture is {str(architecture)[:100]!r}, not {_ARCHITECTURE!r}")
    if not directions:
        raise _unusable(path, "it has no tensor named direction.N")
    return ControlVector(directions, hint)


class _BoundedReader(gguf.GGUFReader):
    """The library's reader, limited to what the file contains.

    The library trusts the header: one that announces 2**60 numbers would fill the memory.
    """

    _num_reads = 0

    def _get(self, offset: int, dtype: Any, count: Any = 1, override_order: Any = None) -> Any:  # noqa: ANN401 the library's signature
        values = super()._get(offset, dtype, count, override_order)
        self._num_reads += 1
        if len(values) != int(count) or self._num_reads > _MAX_READS:
            message = "its header announces more values than the file has"
            raise ValueError(message)
        return values


def _check_size(path: Path) -> None:
    try:
        status = path.stat()
    except OSError as error:
        raise _unusable(path, error.strerror or "it cannot be read") from error
    if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_BYTES:
        raise _unusable(path, f"it is not a regular file, or is larger than {_MAX_BYTES} bytes")


def _text(reader: _BoundedReader, key: str) -> str | None:
    field = reader.get_field(key)
    if field is None or field.types != [gguf.GGUFValueType.STRING]:
        return None
    return bytes(field.parts[field.data[0]]).decode("utf-8", errors="replace")


def _unusable(path: Path, reason: str) -> VectorError:
    return VectorError(f"{path.name} cannot be read as a GGUF control vector: {reason}.", param="file")
