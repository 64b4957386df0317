"""Two sets of texts as the model reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from steerserve.core.errors import ContextLengthError, InvalidRequestError
from steerserve.core.literals import MIN_TEXTS
from steerserve.engine.readings import text_ids

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from steerserve.model.tokenizer import Tokenizer

MAX_TOKENS = 32_768
"""Most tokens of all texts together: half a minute on two cores."""


@dataclass(frozen=True, slots=True)
class TextSets:
    """Tokens of the positive texts, then of the negative ones, each text once."""

    rows: tuple[tuple[int, ...], ...]
    """Token ids of each text."""
    num_positive: int
    """Number of positive texts."""
    params: tuple[str, ...]
    """Name of each text in the request, such as `positive[3]`."""
    num_repeated: int = 0
    """Number of texts that were left out because their set has them already."""

    def unreadable(self, row: int) -> InvalidRequestError:
        """Return the error for a text of which no token counts."""
        param = self.params[row]
        message = f"{param} has only special tokens and attention sinks, which are left out. Send more text."
        return InvalidRequestError(message, param=param)


def read_text_sets(
    tokenizer: Tokenizer, positive: Sequence[str], negative: Sequence[str], max_context: int
) -> TextSets:
    """Tokenise two sets of texts; takes a while for large ones.

    A text counts once: a repeat among the held-out texts would make a separation look proven.

    Raises:
        ContextLengthError: a text is longer than the model's context.
        InvalidRequestError: a text has no tokens, a token that the model does not know, or is in both sets; a set has
            too few different texts; or all texts together are too long.
    """
    sides = {"positive": positive, "negative": negative}
    names = {
        side: _different(
            {f"{side}[{index}]": text_ids(tokenizer, text) for index, text in enumerate(texts)}, tokenizer, max_context
        )
        for side, texts in sides.items()
    }
    if shared := names["positive"].keys() & names["negative"].keys():
        ids = next(ids for ids in names["negative"] if ids in shared)
        param = names["negative"][ids]
        message = f"{param} is the same as {names['positive'][ids]}; a text can be in only one of the sets."
        raise InvalidRequestError(message, param=param)
    for side, texts in names.items():
        if len(texts) < MIN_TEXTS:
            message = f"{side} has fewer than {MIN_TEXTS} different texts; repeats do not count."
            raise InvalidRequestError(message, param=side)
    rows = (*names["positive"], *names["negative"])
    total = sum(map(len, rows))
    if total > MAX_TOKENS:
        message = (
            f"The texts have {total} tokens together; at most {MAX_TOKENS} are allowed. Send fewer or shorter texts."
        )
        raise InvalidRequestError(message, param="positive")
    params = (*names["positive"].values(), *names["negative"].values())
    return TextSets(rows, len(names["positive"]), params, len(positive) + len(negative) - len(rows))


def _different(
    rows: Mapping[str, tuple[int, ...]], tokenizer: Tokenizer, max_context: int
) -> dict[tuple[int, ...], str]:
    """Return the names of the different texts of a set by token ids, in order."""
    names: dict[tuple[int, ...], str] = {}
    for param, row in rows.items():
        if not row or max(row) >= tokenizer.vocab_size:
            message = f"{param} has no tokens, or one that the tokenizer knows and the model does not."
            raise InvalidRequestError(message, param=param)
        if len(row) > max_context:
            message = f"{param} has {len(row)} tokens; this server reads at most {max_context} of a text."
            raise ContextLengthError(message, param=param)
        names.setdefault(row, param)
    return names
