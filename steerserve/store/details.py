"""The large part of a feature's record as one blob of compressed arrays: snippets, histogram, tokens, neighbours.

Knows bytes; not where they are kept. Activations, scores and cosines are rounded to float16, quantiles to float32.
"""

from __future__ import annotations

import itertools
import math
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

_LAYOUT = {
    "quantiles": "f4",
    "histogram": "u4",
    "act_scale": "f4",
    "snippet_lengths": "u4",
    "snippet_peaks": "u4",
    "snippet_intervals": "u4",
    "snippet_tokens": "u4",
    "snippet_acts": "f2",
    "peak_tokens": "u4",
    "peak_tokens_values": "u4",
    "promoted": "u4",
    "promoted_values": "f2",
    "suppressed": "u4",
    "suppressed_values": "f2",
    "neighbours": "u4",
    "neighbours_values": "f2",
}
"""Names and types of the arrays of a blob, in order. The header has the length and the bytes a number of each; whole
numbers are written in as few bytes as the largest of them takes."""
_HEADER = np.dtype([("length", "<u4"), ("width", "<u1")])
_PAIRS = ("peak_tokens", "promoted", "suppressed", "neighbours")
_INTERVALS_FROM = 1
"""Interval 0 is written as this, and none as 0."""
_LARGEST_FLOAT16 = 65504.0
_COMPRESSION = 9
MAX_BYTES = 1 << 20
"""Most bytes of one feature's arrays; real ones have some ten thousand."""


@dataclass(frozen=True, slots=True)
class Details:
    """What a blob holds. Tokens are numbers of the store's vocabulary, or token ids of the model."""

    quantiles: tuple[float, ...] = ()
    histogram: tuple[int, ...] = ()
    snippets: tuple[TextSnippet, ...] = ()
    peak_tokens: tuple[tuple[int, int], ...] = ()
    promoted: Pairs = ()
    suppressed: Pairs = ()
    neighbours: Pairs = ()

    def tokens(self) -> Iterator[int]:
        """Yield every token that occurs, as often as it occurs."""
        for snippet in self.snippets:
            yield from snippet.token_ids
        for pairs in (self.peak_tokens, self.promoted, self.suppressed):
            yield from (token for token, _ in pairs)

    def renumbered(self, numbers: Mapping[int, int]) -> Details:
        """Return the same details with every token replaced by `numbers[token]`."""
        return replace(
            self,
            snippets=tuple(
                replace(snippet, token_ids=tuple([numbers[token] for token in snippet.token_ids]))
                for snippet in self.snippets
            ),
            peak_tokens=tuple((numbers[token], count) for token, count in self.peak_tokens),
            promoted=tuple((numbers[token], score) for token, score in self.promoted),
            suppressed=tuple((numbers[token], score) for token, score in self.suppressed),
        )

    def split(self) -> tuple[Details, Details]:
        """Return what lists show of a feature, its strongest snippet and promoted tokens, and the rest."""
        head = Details(snippets=self.snippets[:1], promoted=self.promoted)
        return head, replace(self, snippets=self.snippets[1:], promoted=())

    def with_head(self, head: Details) -> Details:
        """Join the two parts that `split` returned."""
        return replace(self, snippets=head.snippets + self.snippets, promoted=head.promoted)


def details_of(record: FeatureRecord) -> Details:
    """Return the part of a feature's record that goes into a blob."""
    return Details(
        record.activity.quantiles,
        record.activity.histogram,
        record.snippets,
        record.peak_tokens,
        record.promoted,
        record.suppressed,
        record.neighbours,
    )


def pack_details(details: Details) -> bytes:
    """Return details as a blob. Activations are divided by a power of two if the largest does not fit float16."""
    snippets = details.snippets
    acts = np.array([act for snippet in snippets for act in snippet.acts], np.float64)
    largest = float(acts.max(initial=0.0))
    scale = 2.0 ** math.ceil(math.log2(largest / _LARGEST_FLOAT16)) if largest > _LARGEST_FLOAT16 else 1.0
    values: dict[str, Sequence[float] | NDArray[Any]] = {
        "quantiles": details.quantiles,
        "histogram": details.histogram,
        "act_scale": [scale],
        "snippet_lengths": [len(snippet.token_ids) for snippet in snippets],
        "snippet_peaks": [snippet.peak for snippet in snippets],
        "snippet_intervals": [
            0 if snippet.interval is None else snippet.interval + _INTERVALS_FROM for snippet in snippets
        ],
        "snippet_tokens": [token for snippet in snippets for token in snippet.token_ids],
        "snippet_acts": acts / scale,
    }
    for name in _PAIRS:
        pairs: Pairs = getattr(details, name)
        values[name], values[f"{name}_values"] = [key for key, _ in pairs], [value for _, value in pairs]
    arrays = [_narrow(np.asarray(values[name], f"<{dtype}")) for name, dtype in _LAYOUT.items()]
    header = np.array([(len(array), array.itemsize) for array in arrays], _HEADER)
    return zlib.compress(b"".join(array.tobytes() for array in (header, *arrays)), _COMPRESSION)


def unpack_details(blob: bytes) -> Details:
    """Return the details that `pack_details` wrote.

    Raises:
        ValueError: the blob holds something else.
    """
    arrays = _unpack_arrays(inflate(blob))
    scale = float(arrays["act_scale"][0]) if len(arrays["act_scale"]) else 1.0
    tokens, acts = arrays["snippet_tokens"].tolist(), (arrays["snippet_acts"].astype(np.float64) * scale).tolist()
    ends = list(itertools.accumulate(arrays["snippet_lengths"].tolist(), initial=0))
    if not ends[-1] == len(tokens) == len(acts):
        message = f"its snippets have {ends[-1]} tokens, and {len(tokens)} ids and {len(acts)} activations are there"
        raise ValueError(message)
    spans = zip(
        itertools.pairwise(ends), arrays["snippet_peaks"].tolist(), arrays["snippet_intervals"].tolist(), strict=True
    )
    snippets = [
        TextSnippet(
            tuple(tokens[start:end]), tuple(acts[start:end]), peak, interval - _INTERVALS_FROM if interval else None
        )
        for (start, end), peak, interval in spans
    ]
    pairs = (zip(arrays[name].tolist(), arrays[f"{name}_values"].tolist(), strict=True) for name in _PAIRS)
    return Details(
        tuple(arrays["quantiles"].tolist()), tuple(arrays["histogram"].tolist()), tuple(snippets), *map(tuple, pairs)
    )


def inflate(blob: bytes) -> bytes:
    """Return the bytes that a blob holds compressed.

    Raises:
        ValueError: they are damaged, or more than `MAX_BYTES`.
    """
    inflater = zlib.decompressobj()
    try:
        content = inflater.decompress(blob, MAX_BYTES)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if not inflater.eof:
        message = f"it is cut off, or has over {MAX_BYTES} bytes"
        raise ValueError(message)
    return content


def _narrow(array: NDArray[Any]) -> NDArray[Any]:
    """Return whole numbers in as few bytes as the largest of them takes."""
    if array.dtype.kind != "u":
        return array
    return array.astype(np.min_scalar_type(int(array.max(initial=0))).newbyteorder("<"))


def _unpack_arrays(content: bytes) -> dict[str, NDArray[Any]]:
    header = np.frombuffer(content, _HEADER, len(_LAYOUT))
    arrays: dict[str, NDArray[Any]] = {}
    offset = header.nbytes
    for (name, dtype), (length, width) in zip(_LAYOUT.items(), header.tolist(), strict=True):
        if width not in {1, 2, 4} or (dtype[0] == "f" and dtype != f"f{width}"):
            message = f"its {name} have numbers of {width} bytes"
            raise ValueError(message)
        arrays[name] = np.frombuffer(content, f"<{dtype[0]}{width}", length, offset)
        offset += arrays[name].nbytes
    return arrays
