"""Reads the vectors of requests, inline or stored, into values at hook points. No torch."""

from __future__ import annotations

import base64
import binascii
import math
import struct
from typing import TYPE_CHECKING

from steerserve.core.errors import InvalidRequestError, NotFoundError, VectorError
from steerserve.core.names import did_you_mean, short_name
from steerserve.model.names import describe_hook_names
from steerserve.wire.edits import MAX_SCALE, InlineVector

if TYPE_CHECKING:
    from collections.abc import Mapping

    from steerserve.steering.lookups import VectorLookup
    from steerserve.steering.unit_values import Layers

_FORMATS = {"float16": "e", "float32": "f", "float64": "d"}


class DirectionReader:
    """Reads and checks the vectors of requests. Any thread."""

    def __init__(self, widths: Mapping[str, int], model_id: str | None, vectors: VectorLookup | None) -> None:
        """Check values against a model's `widths` at its hook points; `vectors` looks up stored vectors."""
        self._widths = widths
        self._model_id = model_id
        self._vectors = vectors

    def read(self, vector: str | InlineVector, path: str) -> Layers:
        """Return the vector's hook points with its values at each.

        Raises:
            InvalidRequestError: the vector does not fit the model, or no vector is stored under the name.
        """
        if isinstance(vector, InlineVector):
            return (self._read_inline(vector, path),)
        return self._find(vector, path)

    def _find(self, name: str, path: str) -> Layers:
        name = short_name(name)  # no stored vector has a longer one
        if self._vectors is None:
            message = (
                f"The stored vector {name!r} does not exist: this server stores no vectors. Send the values inline."
            )
            raise InvalidRequestError(message, param=path)
        try:
            stored = self._vectors.find(name)
        except (NotFoundError, VectorError) as error:
            raise InvalidRequestError(f"{path}: {error.message}", param=path) from error
        if (misfit := stored.misfit(self._model_id, self._widths)) is not None:
            raise InvalidRequestError(f"{path}: {misfit}", param=path)
        return tuple(stored.layers.items())

    def _read_inline(self, vector: InlineVector, path: str) -> tuple[str, tuple[float, ...]]:
        width = self._widths.get(vector.hook)
        if width is None:
            hint = did_you_mean(vector.hook, self._widths)
            offered = describe_hook_names(self._widths)
            message = f"The model has no hook point {short_name(vector.hook)!r}.{hint} It has {offered}."
            raise InvalidRequestError(message, param=f"{path}.hook")
        values = tuple(vector.values) if vector.values is not None else _decode_values(vector, path)
        if len(values) != width:
            message = f"A vector at {vector.hook} must have {width} values, and this one has {len(values)}."
            raise InvalidRequestError(message, param=f"{path}.{'values' if vector.values is not None else 'base64'}")
        return vector.hook, values


def _decode_values(vector: InlineVector, path: str) -> tuple[float, ...]:
    dtype = vector.dtype or "float32"
    try:
        raw = base64.b64decode(vector.base64 or "", validate=True)
        values = struct.unpack(f"<{len(raw) // struct.calcsize(_FORMATS[dtype])}{_FORMATS[dtype]}", raw)
    except (binascii.Error, struct.error, ValueError) as error:
        message = f"{path}.base64 is not valid base64 of little-endian {dtype} numbers."
        raise InvalidRequestError(message, param=f"{path}.base64") from error
    if not all(math.isfinite(number) and abs(number) <= MAX_SCALE for number in values):
        message = f"{path}.base64 must contain finite numbers between -{MAX_SCALE:g} and {MAX_SCALE:g}."
        raise InvalidRequestError(message, param=f"{path}.base64")
    return values
