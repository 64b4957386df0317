"""Texts read at hook points of the served model, in pieces that fit between two steps of the engine."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from steerserve.model.norms import SINK_RATIO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from jaxtyping import Bool, Float
    from torch import Tensor
    from transformers import Cache

    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.engine.engine import Engine
    from steerserve.model.lens import LensModel
    from steerserve.model.tokenizer import Tokenizer

    Piece = Callable[[], None]
    """Work of about one step's length, for the engine's thread."""

_PIECE_TOKENS = {"cpu": 64, "cuda": 4096}
"""As many as are computed of a prompt between two steps; a GPU has room for more."""
_MAX_ENCODED = 1 << 24
"""Activations that are encoded at once; a wide dictionary would fill the memory with a long text's."""


@dataclass(frozen=True, slots=True)
class Span:
    """Neighbouring tokens of one text, with what was at the hook points."""

    row: int
    """Which text."""
    ids: tuple[int, ...]
    start: int
    """Place of the first of them in the text."""
    values: Mapping[str, Float[Tensor, "tokens width"]]
    """In float32."""


def text_ids(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """Return the tokens of a text as dictionaries are trained to read it: after a BOS, where the model has one."""
    bos = tokenizer.hf.bos_token_id
    return (*(() if bos is None else (int(bos),)), *tokenizer.encode_plain(text))


async def read_all(engine: Engine, pieces: Iterable[Piece]) -> None:
    """Run the pieces on the engine's thread, one after the other; cancelling this leaves out those that are left.

    Raises:
        QueueFullError: too many others wait for that.
        UnavailableError: the engine is stopping.
    """
    for piece in pieces:
        await asyncio.wrap_future(engine.run_exclusive(piece))


def pieces_of(
    lens: LensModel, rows: Sequence[tuple[int, ...]], hook_names: Iterable[str], take: Callable[[Span], None]
) -> Iterator[Piece]:
    """Yield work that reads `rows` and gives `take` every token of each, in order within a row.

    Short rows are read together, padded on the right, which causal attention hides from the tokens before it. A long
    one is read in several pieces that share a cache.
    """
    limit = _PIECE_TOKENS.get(lens.device.type, _PIECE_TOKENS["cpu"])
    wanted = tuple(hook_names)
    batch: list[int] = []
    for row in sorted(range(len(rows)), key=lambda place: len(rows[place])):
        if batch and (len(batch) + 1) * len(rows[row]) > limit:
            yield partial(_read_batch, lens, rows, batch, wanted, take)
            batch = []
        if len(rows[row]) > limit:
            cache = lens.new_cache()
            for start in range(0, len(rows[row]), limit):
                yield partial(_read_part, lens, Part(row, rows[row][start : start + limit], start), cache, wanted, take)
        else:
            batch.append(row)
    if batch:
        yield partial(_read_batch, lens, rows, batch, wanted, take)


@dataclass(frozen=True, slots=True)
class Part:
    """Tokens of a long text that one piece reads."""

    row: int
    ids: tuple[int, ...]
    start: int


def encode_kept(
    dictionary: Dictionary, span: Span, special_ids: frozenset[int]
) -> tuple[Bool[Tensor, " tokens"], Iterator[Float[Tensor, "some d_sae"]]]:
    """Return which tokens count, and the features' activations at those, in order, some at a time.

    Special tokens and sinks do not count: no dictionary has learned them. The span needs the values at the
    dictionary's `hook_names`: sinks are known by their norm where edits are made. Engine thread only.
    """
    x = span.values[dictionary.read_hook_name]
    keep = kept_tokens(span, dictionary.hook_name, dictionary.median_norm, special_ids)
    some = max(1, _MAX_ENCODED // dictionary.d_sae)
    return keep, (dictionary.encode(part) for part in x[keep].split(some) if len(part))


def kept_tokens(span: Span, hook_name: str, median_norm: float, special_ids: frozenset[int]) -> Bool[Tensor, " tokens"]:
    """Tell which tokens are neither special nor sinks."""
    values = span.values[hook_name]
    plain = torch.tensor([token_id not in special_ids for token_id in span.ids], device=values.device)
    kept: Tensor = plain & (values.norm(dim=-1) <= SINK_RATIO * median_norm)
    return kept


def _read_batch(
    lens: LensModel,
    rows: Sequence[tuple[int, ...]],
    batch: Sequence[int],
    hook_names: tuple[str, ...],
    take: Callable[[Span], None],
) -> None:
    width = max(len(rows[row]) for row in batch)
    ids = torch.tensor([[*rows[row], *[rows[row][-1]] * (width - len(rows[row]))] for row in batch])
    read = lens.read(ids, hook_names)
    for place, row in enumerate(batch):
        take(Span(row, rows[row], 0, {name: value[place, : len(rows[row])].float() for name, value in read.items()}))


def _read_part(
    lens: LensModel, part: Part, cache: Cache, hook_names: tuple[str, ...], take: Callable[[Span], None]
) -> None:
    read = lens.read(torch.tensor([part.ids]), hook_names, cache=cache)
    take(Span(part.row, part.ids, part.start, {name: value[0].float() for name, value in read.items()}))
