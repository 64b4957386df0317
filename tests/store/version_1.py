"""Writes details as feature stores of version 1 had them, and turns a store into one of that version."""

from __future__ import annotations

import math
import sqlite3
import struct
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from steerserve.store.details import Details, unpack_details

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

_HEADER = struct.Struct("<BHHHHHHHb")
_TWO, _THREE = 208, 248
_THREE_FROM = _TWO + (_THREE - _TWO) * 256


def downgrade(path: Path) -> None:
    """Make a store one of version 1."""
    connection = sqlite3.connect(path)
    with connection:
        for table in ("heads", "details"):
            for feature, content in connection.execute(f"SELECT feature, content FROM {table}").fetchall():  # noqa: S608
                old = pack_details_v1(unpack_details(content))
                connection.execute(f"UPDATE {table} SET content = ? WHERE feature = ?", (old, feature))  # noqa: S608
        connection.execute("PRAGMA user_version = 1")
    connection.close()


def pack_details_v1(details: Details) -> bytes:
    snippets = details.snippets
    acts = np.asarray([act for snippet in snippets for act in snippet.acts], np.float64)
    largest = float(acts.max(initial=0.0))
    exponent = math.ceil(math.log2(largest / 65504)) if largest > 65504 else 0
    halves = (acts / 2.0**exponent).astype("<f2")
    is_active = halves != 0
    tables = (details.peak_tokens, details.promoted, details.suppressed, details.neighbours)
    header = _HEADER.pack(1, len(details.quantiles), len(details.histogram), len(snippets), *map(len, tables), exponent)
    parts = [
        _planes(details.quantiles, "<f4"),
        _planes(details.histogram, "<u4"),
        _planes([len(snippet.token_ids) for snippet in snippets], "<u2"),
        _planes([snippet.peak for snippet in snippets], "<u2"),
        _planes([-1 if snippet.interval is None else snippet.interval for snippet in snippets], "<i1"),
        _tokens([token for snippet in snippets for token in snippet.token_ids]),
        np.packbits(is_active).tobytes(),
        _planes(halves[is_active], "<f2"),
        _tokens([token for token, _ in details.peak_tokens]),
        _planes([count for _, count in details.peak_tokens], "<u4"),
    ]
    for table in (details.promoted, details.suppressed):
        parts += [_tokens([token for token, _ in table]), _planes([score for _, score in table], "<f2")]
    parts.append(_planes([feature for feature, _ in details.neighbours], "<u4"))
    parts.append(_planes([cosine for _, cosine in details.neighbours], "<f2"))
    return zlib.compress(header + b"".join(parts), 9)


def _tokens(values: Sequence[int]) -> bytes:
    numbers = np.asarray(values, np.int64)
    is_three = numbers >= _THREE_FROM
    thirds = (numbers[is_three] - _THREE_FROM) % 256
    numbers = np.where(is_three, _THREE_FROM + (numbers - _THREE_FROM) // 256, numbers)
    is_two = numbers >= _TWO
    seconds = (numbers[is_two] - _TWO) % 256
    firsts = np.where(is_two, _TWO + (numbers - _TWO) // 256, numbers)
    return b"".join(part.astype(np.uint8).tobytes() for part in (firsts, seconds, thirds))


def _planes(values: Sequence[float] | NDArray[Any], dtype: str) -> bytes:
    array = np.asarray(values, dtype)
    return array.view(np.uint8).reshape(len(array), array.itemsize).T.tobytes()
