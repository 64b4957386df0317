"""Windows keep what is worth training on: no special tokens, no padding, no endlessly repeated system prompt."""

from __future__ import annotations

from steerserve.model.tokenizer import Tokenizer
from steerserve.text.files import Document
from steerserve.text.windows import ContextWindow, Windower, batch_windows
from tests.tiny import IM_END_ID, IM_START_ID, byte_tokenizer

SPECIAL = frozenset({IM_START_ID, IM_END_ID})


def windower(context_size: int = 32) -> Windower:
    return Windower(Tokenizer(byte_tokenizer(), frozenset({IM_END_ID})), context_size)


def chat(text: str) -> Document:
    return Document("c", messages=(("user", text),))


def test_text_is_cut_into_windows_that_each_start_with_bos() -> None:
    windows = list(windower().windows([Document("a", text="x" * 80)]))
    assert [len(window.ids) for window in windows] == [32, 32, 19]
    assert all(window.ids[0] == IM_START_ID and set(window.ids[1:]) == {ord("x")} for window in windows)


def test_a_rest_of_a_few_tokens_is_left_out() -> None:
    windows = list(windower().windows([Document("a", text="x" * 35), Document("b", text="short")]))
    assert [len(window.ids) for window in windows] == [32]


def test_the_default_system_prompt_is_kept_in_the_first_chats_only() -> None:
    documents = [chat(f"{number:02} and something to say") for number in range(12)]
    starts = [window.num_repeated for window in windower(128).windows(documents)]
    constant = len("<system\nYou are tiny.>\n<user\n")
    assert starts == [0] * 8 + [constant] * 4


def test_a_chat_with_its_own_system_prompt_keeps_it() -> None:
    own = Document("c", messages=(("system", "Speak as a pirate."), ("user", "Who are you?")))
    assert [window.num_repeated for window in windower(128).windows([own] * 12)] == [0] * 12


def test_special_tokens_padding_and_repeated_context_are_left_out() -> None:
    long = ContextWindow((IM_START_ID, 65, 66, IM_END_ID, 67, 68), num_repeated=2)
    short = ContextWindow((IM_START_ID, 69, 70))

    [batch] = batch_windows([long, short], SPECIAL)

    rows = {tuple(ids[plain].tolist()) for ids, plain in zip(batch.ids, batch.is_plain, strict=True)}
    assert rows == {(66, 67, 68), (69, 70)}
    assert batch.is_real.sum() == 9


def test_a_batch_holds_at_most_so_many_padded_tokens() -> None:
    windows = [ContextWindow((IM_START_ID, *range(length))) for length in (9, 30, 5, 29, 100, 7, 31)]
    batches = list(batch_windows(windows, SPECIAL, batch_tokens=64))
    assert sum(len(batch.ids) for batch in batches) == len(windows)
    assert all(batch.ids.numel() <= 64 or len(batch.ids) == 1 for batch in batches)


def test_some_batches_show_the_lengths_that_all_have() -> None:
    """What is measured on the first tokens of a text must not be measured on its shortest windows."""
    windows = [ContextWindow((IM_START_ID, *range(length))) for length in range(9, 129)] * 4
    batches = list(batch_windows(windows, SPECIAL, batch_tokens=256))
    lengths = [batch.ids.shape[1] for batch in batches]
    first, every = lengths[: len(lengths) // 4], lengths
    assert abs(sum(first) / len(first) - sum(every) / len(every)) < 15
    again = list(batch_windows(windows, SPECIAL, batch_tokens=256))
    assert [batch.ids.shape for batch in again] == [batch.ids.shape for batch in batches]
