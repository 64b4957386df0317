"""Two sets of texts as the model reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from steerserve.core.errors import ContextLengthError, InvalidRequestError
from steerserve.features.reading import text_ids

if TYPE_CHECKING:
    from collections.abc import Sequence

    from steerserve.model.tokenizer import Tokenizer

MAX_TOKENS = 32_768
"""Of all texts together: half a minute on two cores."""


@dataclass(frozen=True, slots=True)
class TextSets:
    """Tokens of the positive texts, then of the negative ones."""

    rows: tuple[tuple[int, ...], ...]
    num_positive: int

    def unreadable(self, row: int) -> InvalidRequestError:
        """Return the refusal of a text of which nothing counts."""
        param = _param(row, self.num_positive)
        message = f"{param} has no token but special ones and attention sinks, which are left out. Send more text."
        return InvalidRequestError(message, param=param)


def read_text_sets(
    tokenizer: Tokenizer, positive: Sequence[str], negative: Sequence[str], max_context: int
) -> TextSets:
    """Tokenise two sets; takes a while where they are large.

    Raises:
        ContextLengthError: a text is longer than the model reads.
        InvalidRequestError: one has no token, or one that the model does not know, or they are too long together.
    """
    rows = tuple(text_ids(tokenizer, text) for text in (*positive, *negative))
    for place, row in enumerate(rows):
        if not row or max(row) >= tokenizer.vocab_size:
            param = _param(place, len(positive))
            message = f"{param} has no token, or one that the tokenizer knows and the model does not."
            raise InvalidRequestError(message, param=param)
    too_long = next((place for place, row in enumerate(rows) if len(row) > max_context), None)
    if too_long is not None:
        param = _param(too_long, len(positive))
        message = f"{param} has {len(rows[too_long])} tokens, and this server reads at most {max_context} of a text."
        raise ContextLengthError(message, param=param)
    total = sum(map(len, rows))
    if total > MAX_TOKENS:
        message = (
            f"The texts have {total} tokens together, and at most {MAX_TOKENS} are read. Send fewer or shorter ones."
        )
        raise InvalidRequestError(message, param="positive")
    return TextSets(rows, len(positive))


def _param(row: int, num_positive: int) -> str:
    return f"positive[{row}]" if row < num_positive else f"negative[{row - num_positive}]"
