"""Readings: the activations of a dictionary at tokens, which tokens count, and texts read beside generation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from steerserve.engine.request import FeatureReading
from steerserve.model.norms import SINK_RATIO, counted_tokens, plain_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from jaxtyping import Bool, Float, Int
    from torch import Tensor
    from transformers import Cache

    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.engine.background import Pieces
    from steerserve.model.lens import LensModel
    from steerserve.model.tokenizer import Tokenizer

_PIECE_TOKENS = {"cpu": 64, "cuda": 4096}
"""Number of tokens read between two steps, as many as of a prompt; a GPU has room for more."""
_MAX_ENCODED = 1 << 24
"""Number of activations encoded at once. A wide dictionary would fill the memory with those of a long text."""


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive tokens of one text, with the values at the hook points."""

    row: int
    """Index of the text."""
    ids: tuple[int, ...]
    start: int
    """Position of the first of these tokens in the text."""
    values: Mapping[str, Float[Tensor, "tokens width"]]
    """Values at each hook point, in float32."""


def text_ids(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """Return the tokens of a text as dictionaries are trained to read it: after a BOS token, if the model has one."""
    bos = tokenizer.hf.bos_token_id
    return (*(() if bos is None else (int(bos),)), *tokenizer.encode_plain(text))


def read_texts(
    lens: LensModel, rows: Sequence[tuple[int, ...]], hook_names: Iterable[str], take: Callable[[Span], None]
) -> Pieces[None]:
    """Read `rows` piece by piece, and give `take` every token of each, in order within a row.

    Short rows are read together, padded on the right; causal attention hides the padding from the tokens before it. A
    long row is read in several pieces that share a cache.
    """
    for index, piece in enumerate(_text_pieces(lens, rows, tuple(hook_names), take)):
        if index:
            yield
        piece()


def counted_of(span: Span, hook_name: str, median_norm: float, special_ids: frozenset[int]) -> Bool[Tensor, " tokens"]:
    """Tell which tokens of a span count: those that are neither special nor sinks."""
    values = span.values[hook_name]
    return counted_tokens(values, plain_tokens(span.ids, special_ids, values.device), SINK_RATIO * median_norm)


def encode_counted(
    dictionary: Dictionary, span: Span, special_ids: frozenset[int]
) -> tuple[Bool[Tensor, " tokens"], Iterator[Float[Tensor, "part d_sae"]]]:
    """Return which tokens count, and the activations at those, in order, in parts of limited size.

    The span needs the values at the dictionary's `hook_names`: a sink is recognised by its norm where edits are made,
    which may be another hook point than the one that the dictionary reads. Engine thread only.
    """
    x = span.values[dictionary.read_hook_name]
    counted = counted_of(span, dictionary.hook_name, dictionary.median_norm, special_ids)
    return counted, (dictionary.encode(part) for part in split_for(dictionary, x[counted]) if len(part))


def split_for(dictionary: Dictionary, rows: Tensor) -> tuple[Tensor, ...]:
    """Split tensor rows into parts whose activations fit in memory together."""
    parts: tuple[Tensor, ...] = rows.split(max(1, _MAX_ENCODED // dictionary.d_sae))
    return parts


def pack_readings(
    acts: Float[Tensor, "tokens d_sae"], top: int, features: Int[Tensor, "tokens features"]
) -> Float[Tensor, "tokens numbers"]:
    """Return, for each token, the `top` strongest features, their activations, and the activations of `features`.

    All in one tensor, so that one transfer brings them to the CPU. float64 holds the features' numbers exactly.
    """
    strongest = acts.abs().topk(top, dim=-1).indices
    values = acts.gather(-1, torch.cat([strongest, features], dim=1)).nan_to_num()
    return torch.cat([strongest.double(), values.double()], dim=1)


def unpack_reading(
    numbers: Sequence[float], num_packed: int, top: int, num_features: int, edited: tuple[tuple[int, float], ...] = ()
) -> FeatureReading:
    """Return the reading of one token.

    Args:
        numbers: The token's row of `pack_readings`.
        num_packed: The `top` that it was packed with.
        top: The number of strongest features to keep.
        num_features: The number of further features to keep.
        edited: Features whose activations edits changed, with the activations after the edits.
    """
    strongest = zip(numbers[:num_packed], numbers[num_packed : 2 * num_packed], strict=True)
    return FeatureReading(
        top=tuple((int(feature), act) for feature, act in [*strongest][:top] if act != 0),
        watch=tuple(numbers[2 * num_packed : 2 * num_packed + num_features]),
        edited=edited,
    )


def skipped_reading(
    num_features: int, *, is_special: bool, edited: tuple[tuple[int, float], ...] = ()
) -> FeatureReading:
    """Return the reading of a token that does not count: a special token, or else a sink."""
    return FeatureReading((), (0.0,) * num_features, "special" if is_special else "sink", edited)


@dataclass(frozen=True, slots=True)
class _Part:
    """Tokens of a long text that one piece reads."""

    row: int
    ids: tuple[int, ...]
    start: int


def _text_pieces(
    lens: LensModel, rows: Sequence[tuple[int, ...]], hook_names: tuple[str, ...], take: Callable[[Span], None]
) -> Iterator[Callable[[], None]]:
    limit = _PIECE_TOKENS.get(lens.device.type, _PIECE_TOKENS["cpu"])
    batch: list[int] = []
    for row in sorted(range(len(rows)), key=lambda index: len(rows[index])):
        if batch and (len(batch) + 1) * len(rows[row]) > limit:
            yield partial(_read_batch, lens, rows, batch, hook_names, take)
            batch = []
        if len(rows[row]) > limit:
            cache = lens.new_cache()
            for start in range(0, len(rows[row]), limit):
                part = _Part(row, rows[row][start : start + limit], start)
                yield partial(_read_part, lens, part, cache, hook_names, take)
        else:
            batch.append(row)
    if batch:
        yield partial(_read_batch, lens, rows, batch, hook_names, take)


def _read_batch(
    lens: LensModel,
    rows: Sequence[tuple[int, ...]],
    batch: Sequence[int],
    hook_names: tuple[str, ...],
    take: Callable[[Span], None],
) -> None:
    width = max(len(rows[row]) for row in batch)
    ids = torch.tensor([[*rows[row], *[rows[row][-1]] * (width - len(rows[row]))] for row in batch])
    values = lens.read(ids, hook_names)
    for index, row in enumerate(batch):
        take(Span(row, rows[row], 0, {name: x[index, : len(rows[row])].float() for name, x in values.items()}))


def _read_part(
    lens: LensModel, part: _Part, cache: Cache, hook_names: tuple[str, ...], take: Callable[[Span], None]
) -> None:
    values = lens.read(torch.tensor([part.ids]), hook_names, cache=cache)
    take(Span(part.row, part.ids, part.start, {name: x[0].float() for name, x in values.items()}))
