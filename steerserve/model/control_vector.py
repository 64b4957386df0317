"""GGUF control vectors, as repeng and llama.cpp write them: one direction for each block's output."""

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
"""Values that a header may have; a real one has some hundreds."""


@dataclass(frozen=True, slots=True)
class ControlVector:
    """What a file holds."""

    directions: Mapping[int, NDArray[np.float32]]
    """By block: what is added to its output. Source: llama.cpp's `build_cvec` and repeng's `ControlModel`."""
    model_hint: str | None
    """The architecture that it was made for, such as llama."""


def read_control_vector(path: Path) -> ControlVector:
    """Read a control vector.

    Raises:
        VectorError: the file is none, cut, damaged or far too large.
    """
    _check_size(path)
    try:
        reader = _Reader(path)
        directions = {
            int(match[1]): np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
            for tensor in reader.tensors
            if (match := _DIRECTION.fullmatch(tensor.name))
        }
        architecture, hint = (_text(reader, key) for key in ("general.architecture", f"{_ARCHITECTURE}.model_hint"))
    except Exception as error:  # the library raises what its parts do on files that it cannot read
        raise _unusable(path, str(error).splitlines()[0] if str(error) else type(error).__name__) from error
    if architecture != _ARCHITECTURE:
        raise _unusable(path, f"its architecture is {str(architecture)[:100]!r}, and {_ARCHITECTURE!r} is wanted")
    if not directions:
        raise _unusable(path, "it has no tensor named direction.N")
    return ControlVector(directions, hint)


class _Reader(gguf.GGUFReader):
    """The library's reader, which ends where the file does.

    By itself it takes a header at its word: one that announces 2**60 numbers fills the memory.
    """

    _num_reads = 0

    def _get(self, offset: int, dtype: Any, count: Any = 1, override_order: Any = None) -> Any:  # noqa: ANN401 as there
        found = super()._get(offset, dtype, count, override_order)
        self._num_reads += 1
        if len(found) != int(count) or self._num_reads > _MAX_READS:
            message = "its header speaks of more than there is"
            raise ValueError(message)
        return found


def _check_size(path: Path) -> None:
    try:
        status = path.stat()
    except OSError as error:
        raise _unusable(path, error.strerror or "it cannot be read") from error
    if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_BYTES:
        raise _unusable(path, f"it is no plain file, or has over {_MAX_BYTES} bytes, which no control vector has")


def _text(reader: _Reader, key: str) -> str | None:
    field = reader.get_field(key)
    if field is None or field.types != [gguf.GGUFValueType.STRING]:
        return None
    return bytes(field.parts[field.data[0]]).decode("utf-8", errors="replace")


def _unusable(path: Path, reason: str) -> VectorError:
    return VectorError(f"{path.name} cannot be read as a GGUF control vector: {reason}.", param="file")
