"""The parts wired together, and a dictionary swapped under a request."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from steerserve.core.config import Settings
from steerserve.core.errors import DictionarySourceError
from steerserve.runtime import build_runtime
from tests.engine.harness import Stepper, ask, fresh_engine, run

if TYPE_CHECKING:
    from pathlib import Path

    from steerserve.runtime import Runtime

EDIT = [{"feature": 3, "scale": 8.0, "dictionary": "standard"}]


def settings(model: Path, dictionary: Path, **engine: int) -> Settings:
    return Settings.model_validate(
        {
            "model": {"source": str(model), "device": "cpu"},
            "dictionaries": [{"id": "standard", "source": f"path:{dictionary}"}],
            "engine": {"slots": 2, "context": 64, "prefill_chunk": 16, "threads": 1, **engine},
        }
    )


@pytest.fixture
def own(model_folders: dict[str, Path], dictionary_folders: dict[str, Path]) -> Runtime:
    """Build a runtime that a test may change; not started."""
    return build_runtime(settings(model_folders["llama"], dictionary_folders["standard"]))


def test_it_is_loading_then_ready_then_stopping(own: Runtime) -> None:
    states = [own.state]
    with own:
        states.append(own.state)
    assert [*states, own.state] == ["loading", "ready", "stopping"]


def test_a_request_keeps_the_dictionary_that_it_was_checked_against(own: Runtime, llama: Runtime) -> None:
    request = ask(own, "some text", EDIT)
    other = llama.registry.snapshot().dictionaries["late"]
    with fresh_engine(own, start=False, context=64) as engine:
        stepper = Stepper(engine)
        stepper.submit(request)
        stepper.finish()
        stepper.submit(request)
        stepper.step()
        own.registry.add(replace(other, id="standard"))
        after = ask(own, "some text", EDIT)
        stepper.submit(after)
        stepper.finish()
        before, kept, swapped = (stepper.answer(number) for number in range(3))
    assert kept == before
    assert swapped.receipt is not None
    assert before.receipt is not None
    assert swapped.receipt["edits"][0]["sha256"] != before.receipt["edits"][0]["sha256"]
    assert swapped.receipt["edits"][0]["hook"] == "blocks.1.hook_resid_post"
    assert swapped.token_ids != before.token_ids


def test_the_context_is_never_longer_than_the_models(
    model_folders: dict[str, Path], dictionary_folders: dict[str, Path]
) -> None:
    built = build_runtime(settings(model_folders["llama"], dictionary_folders["standard"], context=4096))
    assert built.context_length == 128


def test_a_dictionary_that_does_not_fit_keeps_it_from_starting(model_folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(DictionarySourceError):
        build_runtime(settings(model_folders["llama"], tmp_path))


def test_two_runtimes_of_one_model_give_the_same_bits(own: Runtime, llama: Runtime) -> None:
    request = {"max_tokens": 8, "num_logprobs": 5}
    with own:
        [one] = run(own.engine, ask(own, "some text", EDIT, **request))
    [two] = run(llama.engine, ask(llama, "some text", EDIT, **request))
    assert one == two
