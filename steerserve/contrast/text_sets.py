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
"""Of all texts together: half a minute on two cores."""


@dataclass(frozen=True, slots=True)
class TextSets:
    """Tokens of the positive texts, then of the negative ones, each text once."""

    rows: tuple[tuple[int, ...], ...]
    num_positive: int
    params: tuple[str, ...]
    """What the request calls each row."""
    num_repeated: int = 0
    """Texts that were left out, being the same as others of their set."""

    def unreadable(self, row: int) -> InvalidRequestError:
        """Return the refusal of a text of which nothing counts."""
        param = self.params[row]
        message = f"{param} has no token but special ones and attention sinks, which are left out. Send more text."
        return InvalidRequestError(message, param=param)


def read_text_sets(
    tokenizer: Tokenizer, positive: Sequence[str], negative: Sequence[str], max_context: int
) -> TextSets:
    """Tokenise two sets; takes a while where they are large.

    A text counts once: a repeat among those that are left out would make what is found on them look proven.

    Raises:
        ContextLengthError: a text is longer than the model reads.
        InvalidRequestError: one has no token, one that the model does not know, or is in both sets; a set has too few
            different ones; or they are too long together.
    """
    sides = {"positive": positive, "negative": negative}
    found = {
        name: _different(
            {f"{name}[{place}]": text_ids(tokenizer, text) for place, text in enumerate(texts)}, tokenizer, max_context
        )
        for name, texts in sides.items()
    }
    if shared := found["positive"].keys() & found["negative"].keys():
        ids = next(ids for ids in found["negative"] if ids in shared)
        param = found["negative"][ids]
        message = f"{param} is the same as {found['positive'][ids]}: no text can be in both sets."
        raise InvalidRequestError(message, param=param)
    for name, texts in found.items():
        if len(texts) < MIN_TEXTS:
            message = f"{name} has fewer than {MIN_TEXTS} different texts; repeats do not count."
            raise InvalidRequestError(message, param=name)
    rows = (*found["positive"], *found["negative"])
    total = sum(map(len, rows))
    if total > MAX_TOKENS:
        message = (
            f"The texts have {total} tokens together, and at most {MAX_TOKENS} are read. Send fewer or shorter ones."
        )
        raise InvalidRequestError(message, param="positive")
    params = (*found["positive"].values(), *found["negative"].values())
    return TextSets(rows, len(found["positive"]), params, len(positive) + len(negative) - len(rows))


def _different(
    rows: Mapping[str, tuple[int, ...]], tokenizer: Tokenizer, max_context: int
) -> dict[tuple[int, ...], str]:
    """Return the different texts of a set in order, with what the request calls them."""
    found: dict[tuple[int, ...], str] = {}
    for param, row in rows.items():
        if not row or max(row) >= tokenizer.vocab_size:
            message = f"{param} has no token, or one that the tokenizer knows and the model does not."
            raise InvalidRequestError(message, param=param)
        if len(row) > max_context:
            message = f"{param} has {len(row)} tokens, and this server reads at most {max_context} of a text."
            raise ContextLengthError(message, param=param)
        found.setdefault(row, param)
    return found
