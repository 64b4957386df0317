"""The large part of a feature's record as one small blob: windows, histogram, promoted tokens, neighbours.

Knows bytes; not where they are kept. Activations, standard deviations and cosines are rounded to float16, quantiles to
float32.
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from steerserve.features.records import Window

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from steerserve.features.records import Feature

Pairs = tuple[tuple[int, float], ...]

_VERSION = 1
_HEADER = struct.Struct("<BBHHHHHHHb")
_NO_INTERVAL = -1
_LARGEST_HALF = 65504.0
_UINT16_IDS = 1 << 16
_LEVEL = 9


@dataclass(frozen=True, slots=True)
class Details:
    """What a blob holds."""

    quantiles: tuple[float, ...]
    histogram: tuple[int, ...]
    windows: tuple[Window, ...]
    peak_tokens: tuple[tuple[int, int], ...]
    promoted: Pairs
    suppressed: Pairs
    neighbours: Pairs

    def token_ids(self) -> set[int]:
        """Return every token that is named."""
        named = {token_id for window in self.windows for token_id in window.token_ids}
        return named | {token_id for pairs in (self.peak_tokens, self.promoted, self.suppressed) for token_id, _ in pairs}


def details_of(feature: Feature) -> Details:
    """Return the part of a feature's record that a blob holds."""
    return Details(
        feature.activity.quantiles,
        feature.activity.histogram,
        feature.windows,
        feature.peak_tokens,
        feature.promoted,
        feature.suppressed,
        feature.neighbours,
    )


def pack_details(details: Details) -> bytes:
    """Write details as bytes.

    Numbers are written byte plane by byte plane, which makes zlib's work easier. Activations are halved until they fit
    float16, so that those which do are kept as they are.
    """
    largest = max((act for window in details.windows for act in window.acts), default=0.0)
    exponent = max(0, math.ceil(math.log2(largest / _LARGEST_HALF))) if largest > _LARGEST_HALF else 0
    wide = max(details.token_ids(), default=0) >= _UINT16_IDS
    ids = "<u4" if wide else "<u2"
    windows = details.windows
    pairs = (details.promoted, details.suppressed)
    header = _HEADER.pack(
        _VERSION,
        wide,
        len(details.quantiles),
        len(details.histogram),
        len(windows),
        len(details.peak_tokens),
        *map(len, pairs),
        len(details.neighbours),
        exponent,
    )
    parts = [
        _planes(details.quantiles, "<f4"),
        _planes(details.histogram, "<u4"),
        _planes([len(window.token_ids) for window in windows], "<u2"),
        _planes([window.peak for window in windows], "<u2"),
        _planes([_NO_INTERVAL if window.interval is None else window.interval for window in windows], "<i1"),
        _planes([token_id for window in windows for token_id in window.token_ids], ids),
        _planes([act / 2**exponent for window in windows for act in window.acts], "<f2"),
        _planes([token_id for token_id, _ in details.peak_tokens], ids),
        _planes([count for _, count in details.peak_tokens], "<u4"),
    ]
    for table, dtype in ((details.promoted, ids), (details.suppressed, ids), (details.neighbours, "<u4")):
        parts += [_planes([key for key, _ in table], dtype), _planes([value for _, value in table], "<f2")]
    return zlib.compress(header + b"".join(parts), _LEVEL)


def unpack_details(blob: bytes) -> Details:
    """Read what `pack_details` wrote.

    Raises:
        ValueError: it wrote something else.
    """
    try:
        content = zlib.decompress(blob)
        version, wide, *counts, exponent = _HEADER.unpack_from(content)
    except (zlib.error, struct.error) as error:
        raise ValueError(str(error)) from error
    if version != _VERSION:
        raise ValueError(f"version {version} of a feature's details is not known")
    num_quantiles, num_bins, num_windows, num_peaks, *num_pairs = counts
    reader = _Reader(content, _HEADER.size)
    ids = "<u4" if wide else "<u2"
    quantiles = tuple(reader.take(num_quantiles, "<f4").tolist())
    histogram = tuple(reader.take(num_bins, "<u4").tolist())
    lengths, peaks = reader.take(num_windows, "<u2"), reader.take(num_windows, "<u2").tolist()
    intervals = reader.take(num_windows, "<i1").tolist()
    total = int(lengths.sum(dtype=np.int64))
    token_ids = reader.take(total, ids).tolist()
    acts = (reader.take(total, "<f2").astype(np.float64) * 2.0**exponent).tolist()
    ends = np.cumsum(lengths, dtype=np.int64).tolist()
    windows = tuple(
        Window(tuple(token_ids[start:end]), tuple(acts[start:end]), peak, None if interval < 0 else interval)
        for start, end, peak, interval in zip([0, *ends], ends, peaks, intervals, strict=False)
    )
    peak_tokens = tuple(zip(reader.take(num_peaks, ids).tolist(), reader.take(num_peaks, "<u4").tolist(), strict=True))
    tables = [
        tuple(zip(reader.take(count, dtype).tolist(), reader.take(count, "<f2").tolist(), strict=True))
        for count, dtype in zip(num_pairs, (ids, ids, "<u4"), strict=True)
    ]
    return Details(quantiles, histogram, windows, peak_tokens, *tables)


class _Reader:
    """Takes arrays from bytes, one after the other."""

    def __init__(self, content: bytes, offset: int) -> None:
        self._content = content
        self._offset = offset

    def take(self, count: int, dtype: str) -> NDArray[np.generic]:
        width = np.dtype(dtype).itemsize
        planes = np.frombuffer(self._content, np.uint8, count * width, self._offset).reshape(width, count)
        self._offset += count * width
        return np.ascontiguousarray(planes.T).view(dtype).reshape(count)


def _planes(values: Sequence[float], dtype: str) -> bytes:
    """Write all first bytes of the numbers, then all second ones, and so on."""
    array = np.asarray(values, dtype)
    return array.view(np.uint8).reshape(len(array), array.itemsize).T.tobytes()
