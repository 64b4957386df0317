"""What an inspection tells is what the dictionary's own encoder gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from steerserve.engine import readings as reading
from steerserve.engine.background import drive
from steerserve.engine.inspection import Inspection
from steerserve.engine.readings import read_texts, text_ids
from tests.conftest import SINK

if TYPE_CHECKING:
    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.runtime import Runtime

TEXT = f"The bridge {SINK} is closed."
SINK_PLACE = 1 + TEXT.index(SINK)


def find(runtime: Runtime, name: str) -> Dictionary:
    return next(one for one in runtime.dictionaries() if one.id == name)


def inspect(runtime: Runtime, dictionary: Dictionary, *, top: int = 5, watch: tuple[int, ...] = ()) -> Inspection:
    found = Inspection(dictionary, top=top, watch=watch, special_ids=runtime.tokenizer.special_ids)
    rows = [text_ids(runtime.tokenizer, TEXT)]
    drive(runtime.engine.run_exclusive, read_texts(runtime.lens, rows, [dictionary.hook_name], found.take))
    return found


@pytest.mark.parametrize("name", ["standard", "topk", "jumprelu", "gated", "normalised", "late", "z", "heads", "mlp"])
@pytest.mark.parametrize("limit", [1000, 6])
def test_an_inspection_is_what_the_encoder_gives_on_the_models_values(
    llama: Runtime, name: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(reading._PIECE_TOKENS, "cpu", limit)
    dictionary = find(llama, name)
    found = inspect(llama, dictionary, watch=(3, 17))
    ids = torch.tensor([text_ids(llama.tokenizer, TEXT)])

    def encode() -> torch.Tensor:
        return dictionary.encode(llama.lens.read(ids, [dictionary.hook_name])[dictionary.hook_name][0])

    acts = llama.engine.run_exclusive(encode).result(timeout=60)
    assert [token.skipped for token in found.tokens[:2]] == ["special", None]
    read = [place for place, token in enumerate(found.tokens) if token.skipped is None]
    for place in read:
        token = found.tokens[place]
        expected = acts[place].topk(5).values
        values = torch.tensor([value for _, value in token.top])
        torch.testing.assert_close(values, expected[expected > 0], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(torch.tensor(token.watch), acts[place, [3, 17]], rtol=1e-3, atol=1e-4)
        for feature, value in token.top:
            assert float(acts[place, feature]) == pytest.approx(value, rel=1e-3, abs=1e-4)
    strongest = found.strongest()
    largest = acts[read].amax(0)
    assert [one.activation for one in strongest] == pytest.approx(largest.topk(5).values.tolist(), rel=1e-3)
    for one in strongest:
        column = acts[read, one.feature]
        assert read[int(column.argmax())] == one.position
        assert one.mean_activation == pytest.approx(float(column.mean()), rel=1e-3)
        assert one.tokens_active == int((column != 0).sum())


def test_sinks_and_special_tokens_are_told_apart_and_activate_nothing(llama: Runtime) -> None:
    found = inspect(llama, find(llama, "planted"), watch=(0,))
    skipped = {place: token for place, token in enumerate(found.tokens) if token.skipped is not None}
    assert {place: token.skipped for place, token in skipped.items()} == {0: "special", SINK_PLACE: "sink"}
    assert all((token.top, token.watch) == ((), (0.0,)) for token in skipped.values())


def test_nothing_asked_for_is_nothing_given(llama: Runtime) -> None:
    found = inspect(llama, find(llama, "planted"), top=0)
    assert found.strongest() == []
    assert all((token.top, token.watch) == ((), ()) for token in found.tokens)


def test_more_than_there_are_is_all_there_are(llama: Runtime) -> None:
    found = inspect(llama, find(llama, "planted"), top=64)
    assert all(len(token.top) <= 16 for token in found.tokens)
