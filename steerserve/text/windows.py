"""Documents as context windows of tokens, and windows as batches of similar length. Knows tokens, not activations."""

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
"""Least length of a window; the rest of a document is left out if it is shorter."""
BATCH_TOKENS = 2048
_GROUP = 512
"""Number of windows that are sorted by length together, so that the rows of a batch need little padding."""
_PREFIX_COPIES = 8
"""Number of chats in which the chat template's constant start counts; in the others it is repeated text."""


@dataclass(frozen=True, slots=True)
class ContextWindow:
    """Tokens that the model reads as one row."""

    ids: tuple[int, ...]
    num_repeated: int = 0
    """Number of leading tokens that repeat other windows: the model reads them, but training leaves them out."""


@dataclass(frozen=True, slots=True)
class WindowBatch:
    """Windows padded on the right; with causal attention the padding does not change the tokens before it."""

    ids: Int[Tensor, "rows pos"]
    is_real: Bool[Tensor, "rows pos"]
    """Whether a token belongs to the text, and not to the padding."""
    is_plain: Bool[Tensor, "rows pos"]
    """Whether a token is real and neither special nor repeated. Sinks are left out later, by their norm."""


class Windower:
    """Cuts documents into windows. Its only state is the number of chats with the template's constant start."""

    def __init__(self, tokenizer: Tokenizer, context_size: int) -> None:
        """Cut into windows of at most `context_size` tokens, the leading BOS included."""
        self._tokenizer = tokenizer
        self._context_size = context_size
        bos: int | None = tokenizer.hf.bos_token_id
        self.bos: tuple[int, ...] = () if bos is None else (bos,)
        self._prefix: tuple[int, ...] | None = None
        self._num_prefixes = 0

    def windows(self, documents: Iterable[Document | StoredDocument]) -> Iterator[ContextWindow]:
        """Yield the windows of each document in turn; a document is read when its first window is due.

        Raises:
            CorpusError: the model's template refuses a conversation, or a file has changed.
        """
        for stored in documents:
            document = stored.read()
            if document.messages is None:
                yield from self._cut([*self.bos, *self._tokenizer.encode_plain(document.text or "")], 0)
            else:
                ids = self._render(document)
                yield from self._cut(ids, self._num_repeated(document, ids))

    def _cut(self, ids: list[int], num_repeated: int) -> Iterator[ContextWindow]:
        first, rest = ids[: self._context_size], ids[self._context_size :]
        if len(first) - num_repeated >= MIN_TOKENS:
            yield ContextWindow(tuple(first), num_repeated)
        size = self._context_size - len(self.bos)
        for start in range(0, len(rest), size):
            part = rest[start : start + size]
            if len(part) >= MIN_TOKENS:
                yield ContextWindow((*self.bos, *part))

    def _render(self, document: Document) -> list[int]:
        try:
            return self._tokenizer.render_chat(document.chat(), add_generation_prompt=False)
        except InvalidRequestError as error:
            message = f"A conversation in {document.source} cannot be rendered: {error.message}"
            raise CorpusError(message, param="corpus") from error

    def _num_repeated(self, document: Document, ids: list[int]) -> int:
        """Return the length of the template's constant start, or 0 in the first few chats."""
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
    first, second = (tokenizer.render_chat([{"role": "user", "content": text}]) for text in ("a", "7"))
    differing = (index for index, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return tuple(first[: next(differing, len(first))])


def batch_documents(
    tokenizer: Tokenizer,
    documents: Iterable[Document | StoredDocument],
    context_size: int,
    batch_tokens: int = BATCH_TOKENS,
) -> Iterator[WindowBatch]:
    """Yield the batches of the documents, in order."""
    windows = Windower(tokenizer, context_size).windows(documents)
    return batch_windows(windows, tokenizer.special_ids, batch_tokens)


def batch_windows(
    windows: Iterable[ContextWindow], special_ids: frozenset[int], batch_tokens: int = BATCH_TOKENS
) -> Iterator[WindowBatch]:
    """Yield batches of at most `batch_tokens` tokens, padding included; a longer window is a batch of its own.

    Windows of similar length share a batch, but the batches are shuffled, so that the first few have short and long
    windows alike.
    """
    special = torch.tensor(sorted(special_ids), dtype=torch.long)
    remaining = iter(windows)
    number = 0
    while group := list(itertools.islice(remaining, _GROUP)):
        batches = _batches(group, batch_tokens)
        random.Random(number).shuffle(batches)  # noqa: S311 an order that is the same each time
        yield from (_pad(rows, special) for rows in batches)
        number += 1


def _batches(group: list[ContextWindow], batch_tokens: int) -> list[list[ContextWindow]]:
    batches: list[list[ContextWindow]] = [[]]
    for window in sorted(group, key=lambda window: len(window.ids)):
        if batches[-1] and (len(batches[-1]) + 1) * len(window.ids) > batch_tokens:
            batches.append([])
        batches[-1].append(window)
    return batches


def _pad(rows: list[ContextWindow], special: Tensor) -> WindowBatch:
    width = max(len(row.ids) for row in rows)
    ids = torch.tensor([[*row.ids, *[row.ids[-1]] * (width - len(row.ids))] for row in rows])
    position = torch.arange(width)
    is_real = position < torch.tensor([len(row.ids) for row in rows])[:, None]
    is_new = position >= torch.tensor([row.num_repeated for row in rows])[:, None]
    return WindowBatch(ids, is_real, is_real & is_new & ~torch.isin(ids, special))
