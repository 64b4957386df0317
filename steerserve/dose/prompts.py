"""The built-in texts on which doses are measured: ordinary prose and ordinary chats, a few sentences each.

They are part of the definition of a dose: other texts give other doses. Of the texts that were tried, the doses on
these are closest to those on all of them together. The texts are in `prompts.json`.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from steerserve.core.errors import InvalidRequestError
from steerserve.text.windows import constant_start

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Int
    from torch import Tensor

    from steerserve.model.tokenizer import Tokenizer

_TEXTS = Path(__file__).with_name("prompts.json")
PROMPT_TOKENS = 32
"""Tokens to which every prompt is cut."""
_HEADER_TOKENS = 8
"""Most tokens that are kept of the text that a chat template puts before the user's first word."""

NEUTRAL = "I want to tell you about"
"""Prompt after which output scores are measured."""


def calibration_ids(tokenizer: Tokenizer) -> Int[Tensor, "prompts pos"]:
    """Return the tokens of the texts on which doses are measured."""
    return prompt_ids(tokenizer, _texts()["prose"], _texts()["chats"])


def more_ids(tokenizer: Tokenizer) -> Int[Tensor, "prompts pos"]:
    """Return the tokens of further texts, for directions whose effect in the others is large at few tokens."""
    return prompt_ids(tokenizer, _texts()["more_prose"], _texts()["more_chats"])


def neutral_ids(tokenizer: Tokenizer) -> Int[Tensor, "prompts pos"]:
    """Return the tokens of the prompt on which output scores are measured."""
    return prompt_ids(tokenizer, (NEUTRAL,), ())


def prompt_ids(
    tokenizer: Tokenizer, prose: Sequence[str], chats: Sequence[Sequence[str]]
) -> Int[Tensor, "prompts pos"]:
    """Return the first tokens of texts after a BOS, and of pairs of question and answer as chats, all of one length.

    A chat begins with the header of the user's turn. The text that the template puts before it is left out: it is the
    same in every chat, and in some templates a date. Without a template, question and answer are read as prose.
    """
    rows = [[*_bos(tokenizer), *tokenizer.encode_plain(text)] for text in prose]
    rows += [_chat_ids(tokenizer, question, answer) for question, answer in chats]
    width = min(PROMPT_TOKENS, *map(len, rows))
    return torch.tensor([row[:width] for row in rows])


@functools.cache
def _texts() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(_TEXTS.read_text(encoding="utf-8"))
    return content


def _chat_ids(tokenizer: Tokenizer, question: str, answer: str) -> list[int]:
    bos = _bos(tokenizer)
    try:
        start = constant_start(tokenizer)
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        rest = tokenizer.render_chat(messages, add_generation_prompt=False)[len(start) :]
    except InvalidRequestError:  # no template, or one that refuses these conversations
        return [*bos, *tokenizer.encode_plain(f"{question}\n\n{answer}")]
    header = start[-_HEADER_TOKENS:]
    special = [pos for pos, token_id in enumerate(header) if token_id in tokenizer.special_ids]
    begins = [pos for pos in special if header[pos : pos + 1] == tuple(bos)]
    kept = header[begins[-1] :] if begins else (*bos, *header[special[0] if special else 0 :])
    return [*kept, *rest]


def _bos(tokenizer: Tokenizer) -> list[int]:
    bos = tokenizer.hf.bos_token_id
    return [] if bos is None else [int(bos)]
