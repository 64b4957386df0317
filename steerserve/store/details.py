"""The large part of a feature's record as one small blob: snippets, histogram, promoted tokens, neighbours.

Knows bytes; not where they are kept. Activations, standard deviations and cosines are rounded to float16, quantiles to
float32.
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from steerserve.store.records import TextSnippet

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from steerserve.store.records import FeatureRecord

Pairs = tuple[tuple[int, float], ...]

_VERSION = 1
_HEADER = struct.Struct("<BHHHHHHHb")
_NO_INTERVAL = -1
_LARGEST_HALF = 65504.0
_LEVEL = 9
_MAX_BYTES = 1 << 20
"""Of one feature; real ones have some ten thousand."""
_TWO, _THREE = 208, 248
"""A number below 208 is one byte, the 10,240 after these are two, those that follow three; see `_short`."""


@dataclass(frozen=True, slots=True)
class Details:
    """What a blob holds. Tokens are named by the small numbers of the store's vocabulary, or by the model's ids."""

    quantiles: tuple[float, ...] = ()
    histogram: tuple[int, ...] = ()
    snippets: tuple[TextSnippet, ...] = ()
    peak_tokens: tuple[tuple[int, int], ...] = ()
    promoted: Pairs = ()
    suppressed: Pairs = ()
    neighbours: Pairs = ()

    def tokens(self) -> Iterator[int]:
        """Give every token that is named, as often as it is."""
        for snippet in self.snippets:
            yield from snippet.token_ids
        for pairs in (self.peak_tokens, self.promoted, self.suppressed):
            yield from (token for token, _ in pairs)

    def renamed(self, names: Mapping[int, int]) -> Details:
        """Name the tokens otherwise."""
        snippets = [
            TextSnippet(
                tuple([names[token] for token in snippet.token_ids]), snippet.acts, snippet.peak, snippet.interval
            )
            for snippet in self.snippets
        ]
        return replace(
            self,
            snippets=tuple(snippets),
            peak_tokens=tuple((names[token], count) for token, count in self.peak_tokens),
            promoted=tuple((names[token], score) for token, score in self.promoted),
            suppressed=tuple((names[token], score) for token, score in self.suppressed),
        )

    def split(self) -> tuple[Details, Details]:
        """Return what lists show of a feature, its strongest snippet and the tokens it promotes, and the rest."""
        head = Details(snippets=self.snippets[:1], promoted=self.promoted)
        return head, replace(self, snippets=self.snippets[1:], promoted=())

    def with_head(self, head: Details) -> Details:
        """Put together again what `split` took apart."""
        return replace(self, snippets=head.snippets + self.snippets, promoted=head.promoted)


def details_of(feature: FeatureRecord) -> Details:
    """Return the part of a feature's record that a blob holds."""
    return Details(
        feature.activity.quantiles,
        feature.activity.histogram,
        feature.snippets,
        feature.peak_tokens,
        feature.promoted,
        feature.suppressed,
        feature.neighbours,
    )


def pack_details(details: Details) -> bytes:
    """Write details as bytes.

    Numbers are written byte plane by byte plane and activations without their zeros, which makes zlib's work easier.
    Activations are halved until the largest fits float16.
    """
    snippets = details.snippets
    acts = np.asarray([act for snippet in snippets for act in snippet.acts], np.float64)
    largest = float(acts.max(initial=0.0))
    exponent = math.ceil(math.log2(largest / _LARGEST_HALF)) if largest > _LARGEST_HALF else 0
    halves = (acts / 2.0**exponent).astype("<f2")
    is_active = halves != 0
    tables = (details.peak_tokens, details.promoted, details.suppressed, details.neighbours)
    header = _HEADER.pack(
        _VERSION, len(details.quantiles), len(details.histogram), len(snippets), *map(len, tables), exponent
    )
    parts = [
        _planes(details.quantiles, "<f4"),
        _planes(details.histogram, "<u4"),
        _planes([len(snippet.token_ids) for snippet in snippets], "<u2"),
        _planes([snippet.peak for snippet in snippets], "<u2"),
        _planes([_NO_INTERVAL if snippet.interval is None else snippet.interval for snippet in snippets], "<i1"),
        _short([token for snippet in snippets for token in snippet.token_ids]),
        np.packbits(is_active).tobytes(),
        _planes(halves[is_active], "<f2"),
        _short([token for token, _ in details.peak_tokens]),
        _planes([count for _, count in details.peak_tokens], "<u4"),
    ]
    for table in (details.promoted, details.suppressed):
        parts += [_short([token for token, _ in table]), _planes([score for _, score in table], "<f2")]
    parts.append(_planes([feature for feature, _ in details.neighbours], "<u4"))
    parts.append(_planes([cosine for _, cosine in details.neighbours], "<f2"))
    return zlib.compress(header + b"".join(parts), _LEVEL)


def unpack_details(blob: bytes) -> Details:
    """Read what `pack_details` wrote.

    Raises:
        ValueError: it wrote something else.
    """
    try:
        inflater = zlib.decompressobj()
        content = inflater.decompress(blob, _MAX_BYTES)
        version, num_quantiles, num_bins, num_snippets, num_peaks, *counts, exponent = _HEADER.unpack_from(content)
    except (zlib.error, struct.error) as error:
        raise ValueError(str(error)) from error
    if not inflater.eof:
        message = f"it is cut off, or has over {_MAX_BYTES} bytes"
        raise ValueError(message)
    if version != _VERSION:
        message = f"version {version} of a feature's details is not known"
        raise ValueError(message)
    reader = _Reader(content, _HEADER.size)
    quantiles = tuple(reader.take(num_quantiles, "<f4").tolist())
    histogram = tuple(reader.take(num_bins, "<u4").tolist())
    lengths, peaks = reader.take(num_snippets, "<u2").tolist(), reader.take(num_snippets, "<u2").tolist()
    intervals = reader.take(num_snippets, "<i1").tolist()
    tokens = reader.take_short(sum(lengths))
    acts = (reader.take_sparse(sum(lengths)) * 2.0**exponent).tolist()
    snippets, start = [], 0
    for length, peak, interval in zip(lengths, peaks, intervals, strict=True):
        part = slice(start, start := start + length)
        snippets.append(TextSnippet(tuple(tokens[part]), tuple(acts[part]), peak, None if interval < 0 else interval))
    peak_tokens = tuple(zip(reader.take_short(num_peaks), reader.take(num_peaks, "<u4").tolist(), strict=True))
    *num_scored, num_neighbours = counts
    promoted, suppressed = (
        tuple(zip(reader.take_short(count), reader.take(count, "<f2").tolist(), strict=True)) for count in num_scored
    )
    features = reader.take(num_neighbours, "<u4").tolist()
    neighbours = tuple(zip(features, reader.take(num_neighbours, "<f2").tolist(), strict=True))
    return Details(quantiles, histogram, tuple(snippets), peak_tokens, promoted, suppressed, neighbours)


class _Reader:
    """Takes arrays from bytes, one after the other."""

    def __init__(self, content: bytes, offset: int) -> None:
        self._content = content
        self._offset = offset

    def take(self, count: int, dtype: str) -> NDArray[Any]:
        """Read what `_planes` wrote."""
        width = np.dtype(dtype).itemsize
        planes = np.frombuffer(self._content, np.uint8, count * width, self._offset).reshape(width, count)
        self._offset += count * width
        return np.ascontiguousarray(planes.T).view(dtype).reshape(count)

    def take_short(self, count: int) -> list[int]:
        """Read what `_short` wrote."""
        numbers = self.take(count, "<u1").astype(np.int64)
        has_two, has_three = numbers >= _TWO, numbers >= _THREE
        seconds, thirds = self.take(int(has_two.sum()), "<u1"), self.take(int(has_three.sum()), "<u1")
        numbers[has_two] = (numbers[has_two] - _TWO) * 256 + seconds + _TWO
        numbers[has_three] = (numbers[has_three] - _THREE_FROM) * 256 + thirds + _THREE_FROM
        found: list[int] = numbers.tolist()
        return found

    def take_sparse(self, count: int) -> NDArray[Any]:
        """Read which activations are not zero, and these."""
        num_bytes = -(-count // 8)
        is_active = np.unpackbits(self.take(num_bytes, "<u1"), count=count).astype(bool)
        acts = np.zeros(count)
        acts[is_active] = self.take(int(is_active.sum()), "<f2")
        return acts


_THREE_FROM = _TWO + (_THREE - _TWO) * 256


def _short(values: Sequence[int]) -> bytes:
    """Write numbers in as few bytes as they take: all first bytes, then the second ones, then the third ones.

    With A = 208, B = 248 and C = A + (B - A) * 256: a number n < A is the byte n; n < C is A + (n - A) // 256 and
    (n - A) % 256; any other is written as C + (n - C) // 256 would be, and (n - C) % 256 after that.
    """
    numbers = np.asarray(values, np.int64)
    is_three = numbers >= _THREE_FROM
    thirds = (numbers[is_three] - _THREE_FROM) % 256
    numbers = np.where(is_three, _THREE_FROM + (numbers - _THREE_FROM) // 256, numbers)
    is_two = numbers >= _TWO
    seconds = (numbers[is_two] - _TWO) % 256
    firsts = np.where(is_two, _TWO + (numbers - _TWO) // 256, numbers)
    if firsts.max(initial=0) > 255:  # noqa: PLR2004 a byte
        message = f"{max(values)} is too large a number"
        raise ValueError(message)
    return b"".join(part.astype(np.uint8).tobytes() for part in (firsts, seconds, thirds))


def _planes(values: Sequence[float] | NDArray[Any], dtype: str) -> bytes:
    """Write all first bytes of the numbers, then all second ones, and so on."""
    array = np.asarray(values, dtype)
    return array.view(np.uint8).reshape(len(array), array.itemsize).T.tobytes()
