"""Log-probabilities in both shapes: offsets, names of tokens, numbers that are not finite."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steerserve.engine.request import LogprobEntry
from steerserve.requests.answers.logprobs import CompletionLogprobWriter, chat_logprobs
from steerserve.server.sse import event_bytes
from tests.tiny import IM_START_ID

if TYPE_CHECKING:
    from steerserve.runtime import Runtime


def test_a_number_that_is_not_finite_never_reaches_the_json(llama: Runtime) -> None:
    entry = LogprobEntry(65, float("-inf"), top=((65, float("nan")),))
    written = event_bytes(chat_logprobs([entry], llama.tokenizer))
    assert b"NaN" not in written
    assert b"Infinity" not in written


def test_a_token_that_the_tokenizer_put_before_the_text_has_no_place_in_it(llama: Runtime) -> None:
    writer = CompletionLogprobWriter(llama.tokenizer)
    logprobs = [None, LogprobEntry(104, -1.0), LogprobEntry(105, -2.0)]
    written = writer.prompt([IM_START_ID, 104, 105], logprobs, "hi")
    assert written.text_offset == [0, 0, 1]
    assert written.tokens == ["<|im_start|>", "h", "i"]


def test_a_special_token_and_its_spelling_share_a_name_without_losing_the_likelier(llama: Runtime) -> None:
    writer = CompletionLogprobWriter(llama.tokenizer)
    entry = LogprobEntry(105, -2.0, top=((104, -1.0), (105, -2.0)))
    assert writer.prompt([105], [entry], "i").top_logprobs == [{"h": -1.0, "i": -2.0}]
