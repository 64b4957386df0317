"""Texts read in pieces are what they are read whole, and only tokens that a dictionary learned count."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
import torch

from steerserve.engine import readings as reading
from steerserve.engine.background import drive
from steerserve.engine.readings import counted_of, encode_counted, read_texts, text_ids
from tests.conftest import SINK
from tests.engine.harness import Stepper, ask, fresh_engine
from tests.tiny import HOOK_NAME, IM_START_ID

if TYPE_CHECKING:
    from steerserve.engine.readings import Span
    from steerserve.runtime import Runtime

HOOKS = (HOOK_NAME, "blocks.1.hook_resid_pre")
TEXTS = ("a", "Once upon a time", "", "x" * 20, "The bridge is closed until further notice.", "y" * 100)


def read(runtime: Runtime, rows: list[tuple[int, ...]]) -> list[list[Span]]:
    """Read rows on the engine's thread; return the spans of each."""
    spans: list[list[Span]] = [[] for _ in rows]
    pieces = read_texts(runtime.lens, rows, HOOKS, lambda span: spans[span.row].append(span))
    drive(runtime.engine.run_exclusive, pieces)
    return spans


@pytest.mark.parametrize("model", ["llama", "gpt2"])
@pytest.mark.parametrize("limit", [1000, 64, 7, 1])
def test_texts_read_together_and_in_pieces_have_the_values_that_each_has_alone(
    model: str, limit: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime: Runtime = request.getfixturevalue(model)
    monkeypatch.setitem(reading._PIECE_TOKENS, "cpu", limit)
    rows = [text_ids(runtime.tokenizer, text) for text in TEXTS]
    for row, spans in zip(rows, read(runtime, rows), strict=True):
        assert [token_id for span in spans for token_id in span.ids] == list(row)
        assert [span.start for span in spans] == list(range(0, len(row), limit))
        alone = runtime.lens.read(torch.tensor([row]), HOOKS)
        for hook_name in HOOKS:
            joined = torch.cat([span.values[hook_name] for span in spans])
            torch.testing.assert_close(joined, alone[hook_name][0], rtol=1e-4, atol=1e-4)


def test_no_piece_is_longer_than_the_limit(llama: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(reading._PIECE_TOKENS, "cpu", 30)
    seen: list[int] = []
    with llama.lens.hooked(HOOK_NAME, lambda x: seen.append(x.shape[0] * x.shape[1])):
        read(llama, [text_ids(llama.tokenizer, text) for text in TEXTS])
    assert max(seen) <= 30
    assert sum(seen) < 2 * sum(len(text) + 1 for text in TEXTS)


def test_a_text_begins_with_the_models_bos(llama: Runtime) -> None:
    assert text_ids(llama.tokenizer, "hi") == (IM_START_ID, ord("h"), ord("i"))


def test_special_tokens_and_sinks_do_not_count(llama: Runtime) -> None:
    [dictionary] = [one for one in llama.dictionaries() if one.id == "planted"]
    [[span]] = read(llama, [text_ids(llama.tokenizer, f"ab{SINK}c")])
    special = llama.tokenizer.special_ids
    assert counted_of(span, HOOK_NAME, dictionary.median_norm, special).tolist() == [False, True, True, False, True]
    keep, parts = encode_counted(dictionary, span, special)
    [acts] = llama.engine.run_exclusive(lambda: list(parts)).result(timeout=60)
    # The planted dictionary's features are the stream's components, where they are positive.
    torch.testing.assert_close(acts, span.values[HOOK_NAME][keep][:, :16].relu())


def test_generation_and_reading_take_turns(llama: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(reading._PIECE_TOKENS, "cpu", 8)
    with fresh_engine(llama, start=False) as engine:
        stepper = Stepper(engine)
        stepper.submit(ask(llama, "Once upon a time", max_tokens=12))
        order: list[int] = []
        rows = [text_ids(llama.tokenizer, "z" * 7)] * 10
        pieces = read_texts(llama.lens, rows, HOOKS, lambda _: order.append(len(stepper.events[0])))
        calls = [engine.run_exclusive(partial(next, pieces, None)) for _ in rows]
        stepper.finish()
        assert all(call.done() for call in calls)
        # A token came before each piece: between any two of them the stream went on.
        assert order == list(range(order[0], order[0] + len(rows)))
        assert stepper.answer(0).num_generated == 12
