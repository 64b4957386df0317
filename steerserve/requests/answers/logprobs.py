r"""Log-probabilities in OpenAI's two shapes.

A token may be only part of a character. Chat writes its bytes as `\\xNN`, text completions as `bytes:\\xNN`, as
OpenAI's own answers do, so that different tokens are always written differently.
"""

from __future__ import annotations

import codecs
from itertools import accumulate
from typing import TYPE_CHECKING

from steerserve.wire.chat import ChoiceLogprobs, TokenLogprob, TopLogprob
from steerserve.wire.completions import CompletionLogprobs

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from steerserve.engine.request import LogprobEntry, TokenEvent
    from steerserve.model.tokenizer import Tokenizer


def chat_logprobs(logprobs: Iterable[LogprobEntry], tokenizer: Tokenizer) -> ChoiceLogprobs:
    """Write generated tokens in the shape of chat completions."""
    return ChoiceLogprobs(content=[_chat_entry(entry, tokenizer) for entry in logprobs])


class CompletionLogprobWriter:
    """Writes one choice's tokens in the shape of text completions, with offsets that continue from chunk to chunk."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Start at the beginning of the choice's text."""
        self._tokenizer = tokenizer
        self._offset = 0

    def prompt(
        self, prompt_ids: Sequence[int], logprobs: Sequence[LogprobEntry | None], text: str
    ) -> CompletionLogprobs:
        """Write the echoed prompt, `text`."""
        pieces = _pieces(prompt_ids, self._tokenizer)
        # The tokenizer may have added tokens before the text, which are not part of it.
        num_before = max("".join(pieces).find(text), 0)
        starts = accumulate((len(piece) for piece in pieces), initial=-num_before)
        offsets = [min(max(start, 0), len(text)) for start, _ in zip(starts, pieces, strict=False)]
        self._offset = len(text)
        return self._write(prompt_ids, logprobs, offsets)

    def tokens(self, event: TokenEvent) -> CompletionLogprobs:
        """Write newly generated tokens."""
        starts = list(accumulate((len(text) for text in event.token_texts), initial=self._offset))
        self._offset = starts[-1]
        return self._write(event.token_ids, event.logprobs, starts[: len(event.token_ids)])

    def _write(
        self, ids: Sequence[int], logprobs: Sequence[LogprobEntry | None], offsets: list[int]
    ) -> CompletionLogprobs:
        return CompletionLogprobs(
            tokens=[completion_token(token_id, self._tokenizer) for token_id in ids],
            token_logprobs=[entry.logprob if entry is not None else None for entry in logprobs],
            top_logprobs=[self._top(entry) if entry is not None else None for entry in logprobs],
            text_offset=offsets,
        )

    def _top(self, entry: LogprobEntry) -> dict[str, float]:
        top: dict[str, float] = {}
        # Two tokens may have equal texts (a special token and its spelling); the likelier one is reported.
        for token_id, logprob in (*entry.top, (entry.token_id, entry.logprob)):
            top.setdefault(completion_token(token_id, self._tokenizer), logprob)
        return top


def join_completion_logprobs(parts: Sequence[CompletionLogprobs]) -> CompletionLogprobs:
    """Join consecutive parts of one choice."""
    return CompletionLogprobs(
        tokens=[token for part in parts for token in part.tokens],
        token_logprobs=[logprob for part in parts for logprob in part.token_logprobs],
        top_logprobs=[top for part in parts for top in part.top_logprobs],
        text_offset=[offset for part in parts for offset in part.text_offset],
    )


def completion_token(token_id: int, tokenizer: Tokenizer) -> str:
    r"""Write a token's text, or its bytes as `bytes:\\xNN` if they are not whole characters."""
    raw = tokenizer.token_bytes(token_id)
    text = _whole_text(raw)
    return text if text is not None else "bytes:" + _escaped(raw)


def _chat_entry(entry: LogprobEntry, tokenizer: Tokenizer) -> TokenLogprob:
    chosen = _top_entry(entry.token_id, entry.logprob, tokenizer)
    return TokenLogprob(
        token=chosen.token,
        logprob=chosen.logprob,
        bytes=chosen.bytes,
        top_logprobs=[_top_entry(token_id, logprob, tokenizer) for token_id, logprob in entry.top],
    )


def _top_entry(token_id: int, logprob: float, tokenizer: Tokenizer) -> TopLogprob:
    raw = tokenizer.token_bytes(token_id)
    text = _whole_text(raw)
    return TopLogprob(token=text if text is not None else _escaped(raw), logprob=logprob, bytes=list(raw))


def _whole_text(raw: bytes) -> str | None:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None


def _escaped(raw: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in raw)


def _pieces(ids: Iterable[int], tokenizer: Tokenizer) -> list[str]:
    """Split a text into its tokens; a character of several tokens belongs to the last of them."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    return [decoder.decode(tokenizer.token_bytes(token_id)) for token_id in ids]
