"""Reads the details of feature stores of version 1, to migrate them. Nothing writes this format any more.

A blob is zlib over a header and arrays. An array is stored byte plane by byte plane: all first bytes of its numbers,
then all second bytes, and so on. Activations are stored without their zeros. Tokens take one to three bytes: with
A = 208, B = 248 and C = A + (B - A) * 256, a number n < A is the byte n; n < C is A + (n - A) // 256 and (n - A) % 256;
any other is written as C + (n - C) // 256 would be, and (n - C) % 256 after that.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from steerserve.store.details import Details, inflate, pack_details
from steerserve.store.records import TextSnippet

if TYPE_CHECKING:
    import sqlite3

    from numpy.typing import NDArray

_HEADER = struct.Struct("<BHHHHHHHb")
_VERSION = 1
_TWO, _THREE = 208, 248
_THREE_FROM = _TWO + (_THREE - _TWO) * 256


def repack_details(connection: sqlite3.Connection) -> None:
    """Write the blobs of a store of version 1 anew, as plain arrays."""
    for table in ("heads", "details"):
        rows = connection.execute(f"SELECT feature, content FROM {table}").fetchall()  # noqa: S608 constants
        connection.executemany(
            f"UPDATE {table} SET content = ? WHERE feature = ?",  # noqa: S608 constants
            [(pack_details(unpack_details_v1(content)), feature) for feature, content in rows],
        )


def unpack_details_v1(blob: bytes) -> Details:
    """Return the details in a blob of version 1.

    Raises:
        ValueError: the blob holds something else.
    """
    content = inflate(blob)
    try:
        version, num_quantiles, num_bins, num_snippets, num_peaks, *counts, exponent = _HEADER.unpack_from(content)
    except struct.error as error:
        raise ValueError(str(error)) from error
    if version != _VERSION:
        message = f"version {version} of a feature's details is unknown"
        raise ValueError(message)
    cursor = _PlaneCursor(content, _HEADER.size)
    quantiles, histogram = cursor.take(num_quantiles, "<f4").tolist(), cursor.take(num_bins, "<u4").tolist()
    lengths, peaks = cursor.take(num_snippets, "<u2").tolist(), cursor.take(num_snippets, "<u2").tolist()
    intervals = cursor.take(num_snippets, "<i1").tolist()
    tokens = cursor.take_tokens(sum(lengths))
    acts = (cursor.take_sparse(sum(lengths)) * 2.0**exponent).tolist()
    snippets, start = [], 0
    for length, peak, interval in zip(lengths, peaks, intervals, strict=True):
        part = slice(start, start := start + length)
        snippets.append(TextSnippet(tuple(tokens[part]), tuple(acts[part]), peak, None if interval < 0 else interval))
    peak_tokens = tuple(zip(cursor.take_tokens(num_peaks), cursor.take(num_peaks, "<u4").tolist(), strict=True))
    *num_scored, num_neighbours = counts
    promoted, suppressed = (
        tuple(zip(cursor.take_tokens(count), cursor.take(count, "<f2").tolist(), strict=True)) for count in num_scored
    )
    features = cursor.take(num_neighbours, "<u4").tolist()
    neighbours = tuple(zip(features, cursor.take(num_neighbours, "<f2").tolist(), strict=True))
    return Details(tuple(quantiles), tuple(histogram), tuple(snippets), peak_tokens, promoted, suppressed, neighbours)


class _PlaneCursor:
    """Takes arrays from bytes, one after the other."""

    def __init__(self, content: bytes, offset: int) -> None:
        self._content = content
        self._offset = offset

    def take(self, count: int, dtype: str) -> NDArray[Any]:
        """Return the next `count` numbers."""
        width = np.dtype(dtype).itemsize
        planes = np.frombuffer(self._content, np.uint8, count * width, self._offset).reshape(width, count)
        self._offset += count * width
        return np.ascontiguousarray(planes.T).view(dtype).reshape(count)

    def take_tokens(self, count: int) -> list[int]:
        """Return the next `count` tokens: all their first bytes come first, then the second and the third ones."""
        numbers = self.take(count, "<u1").astype(np.int64)
        has_two, has_three = numbers >= _TWO, numbers >= _THREE
        seconds, thirds = self.take(int(has_two.sum()), "<u1"), self.take(int(has_three.sum()), "<u1")
        numbers[has_two] = (numbers[has_two] - _TWO) * 256 + seconds + _TWO
        numbers[has_three] = (numbers[has_three] - _THREE_FROM) * 256 + thirds + _THREE_FROM
        tokens: list[int] = numbers.tolist()
        return tokens

    def take_sparse(self, count: int) -> NDArray[Any]:
        """Return the next `count` activations: a bit for each that is not zero, then these."""
        is_active = np.unpackbits(self.take(-(-count // 8), "<u1"), count=count).astype(bool)
        acts = np.zeros(count)
        acts[is_active] = self.take(int(is_active.sum()), "<f2")
        return acts
