"""Documents as token windows, and windows as batches of nearly equal length. Knows tokens, not activations."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from steerserve.core.errors import CorpusError, InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from jaxtyping import Bool, Int
    from torch import Tensor

    from steerserve.model.tokenizer import Tokenizer
    from steerserve.text.corpus import StoredDocument
    from steerserve.text.files import Document

MIN_TOKENS = 8
"""A shorter rest of a document is not worth a row."""
BATCH_TOKENS = 2048
_GROUP = 512
"""Windows are sorted by length among so many neighbours, so that rows of a batch need little padding."""
_PREFIX_COPIES = 8
"""How often the default system prompt, the same in every chat, is kept."""


@dataclass(frozen=True, slots=True)
class Window:
    """One row for the model."""

    ids: tuple[int, ...]
    num_context: int = 0
    """Leading tokens that the model reads but that are left out of training and evaluation."""


@dataclass(frozen=True, slots=True)
class WindowBatch:
    """Rows padded on the right; causal attention makes the padding invisible to the tokens before it."""

    ids: Int[Tensor, "rows pos"]
    real: Bool[Tensor, "rows pos"]
    """Tokens of the text."""
    wanted: Bool[Tensor, "rows pos"]
    """Real tokens that are neither special nor repeated context. Sinks are found later, by their norm."""


class Windower:
    """Cuts documents into windows. Keeps one thing: how often it has seen the chat template's constant start."""

    def __init__(self, tokenizer: Tokenizer, context_size: int) -> None:
        """Cut to at most `context_size` tokens, the leading BOS included."""
        self._tokenizer = tokenizer
        self._context_size = context_size
        bos: int | None = tokenizer.hf.bos_token_id
        self.bos: tuple[int, ...] = () if bos is None else (bos,)
        self._prefix: tuple[int, ...] | None = None
        self._num_prefixes = 0

    def windows(self, documents: Iterable[Document | StoredDocument]) -> Iterator[Window]:
        """Yield the windows of each document in turn; each is read when it is due.

        Raises:
            CorpusError: a conversation that the model's template refuses, or a file that has changed.
        """
        for found in documents:
            document = found.read()
            if document.messages is None:
                yield from self._cut([*self.bos, *self._tokenizer.encode_plain(document.text or "")], 0)
            else:
                ids = self._render(document)
                yield from self._cut(ids, self._num_repeated(document, ids))

    def _cut(self, ids: list[int], num_context: int) -> Iterator[Window]:
        first, rest = ids[: self._context_size], ids[self._context_size :]
        if len(first) - num_context >= MIN_TOKENS:
            yield Window(tuple(first), num_context)
        size = self._context_size - len(self.bos)
        for start in range(0, len(rest), size):
            piece = rest[start : start + size]
            if len(piece) >= MIN_TOKENS:
                yield Window((*self.bos, *piece))

    def _render(self, document: Document) -> list[int]:
        try:
            return self._tokenizer.render_chat(document.chat(), add_generation_prompt=False)
        except InvalidRequestError as error:
            message = f"A conversation in {document.source} cannot be rendered: {error.message}"
            raise CorpusError(message, param="corpus") from error

    def _num_repeated(self, document: Document, ids: list[int]) -> int:
        """Return the length of the template's constant start, 0 while it is among the first few."""
        if document.messages is None or document.messages[0][0] != "user":
            return 0
        if self._prefix is None:
            self._prefix = constant_start(self._tokenizer)
        if tuple(ids[: len(self._prefix)]) != self._prefix:
            return 0
        self._num_prefixes += 1
        return 0 if self._num_prefixes <= _PREFIX_COPIES else len(self._prefix)


def constant_start(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the tokens with which the model's template begins every chat, up to the user's first word."""
    one, two = (tokenizer.render_chat([{"role": "user", "content": text}]) for text in ("a", "7"))
    same = next((place for place, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), len(one))
    return tuple(one[:same])


def batch_documents(
    tokenizer: Tokenizer,
    documents: Iterable[Document | StoredDocument],
    context_size: int,
    batch_tokens: int = BATCH_TOKENS,
) -> Iterator[WindowBatch]:
    """Yield the batches of a text, from its start."""
    windows = Windower(tokenizer, context_size).windows(documents)
    return batch_windows(windows, tokenizer.special_ids, batch_tokens)


def batch_windows(
    windows: Iterable[Window], special_ids: frozenset[int], batch_tokens: int = BATCH_TOKENS
) -> Iterator[WindowBatch]:
    """Yield batches of at most `batch_tokens` padded tokens (a single longer row is a batch of its own).

    Windows of like length share a batch, but batches of all lengths come in a drawn order: whoever stops after some of
    them has seen short and long windows alike.
    """
    special = torch.tensor(sorted(special_ids), dtype=torch.long)
    remaining = iter(windows)
    number = 0
    while group := list(itertools.islice(remaining, _GROUP)):
        batches = _batches(group, batch_tokens)
        random.Random(number).shuffle(batches)  # noqa: S311 an order that is the same each time
        yield from (_pad(rows, special) for rows in batches)
        number += 1


def _batches(group: list[Window], batch_tokens: int) -> list[list[Window]]:
    batches: list[list[Window]] = [[]]
    for window in sorted(group, key=lambda one: len(one.ids)):
        if batches[-1] and (len(batches[-1]) + 1) * len(window.ids) > batch_tokens:
            batches.append([])
        batches[-1].append(window)
    return batches


def _pad(rows: list[Window], special: Tensor) -> WindowBatch:
    width = max(len(row.ids) for row in rows)
    ids = torch.tensor([[*row.ids, *[row.ids[-1]] * (width - len(row.ids))] for row in rows])
    place = torch.arange(width)
    real = place < torch.tensor([len(row.ids) for row in rows])[:, None]
    after_context = place >= torch.tensor([row.num_context for row in rows])[:, None]
    return WindowBatch(ids, real, real & after_context & ~torch.isin(ids, special))
