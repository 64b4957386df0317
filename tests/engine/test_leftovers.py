"""What one request breaks stays its own: slots, batches and shapes leave nothing to the next."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from steerserve.core.config import Settings
from steerserve.runtime import build_runtime
from tests.engine.harness import Stepper, ask, fresh_engine, run
from tests.engine.test_engine import TEXT, error_of, failing, overflowing
from tests.tiny import CONTEXT, IM_END_ID, IM_START_ID, PAD_ID, VOCAB_SIZE, byte_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from steerserve.engine.request import GenerationRequest
    from steerserve.runtime import Runtime


def overflowing_at(llama: Runtime, positions: str) -> GenerationRequest:
    request = ask(llama, "y" * 50, [{"feature": 3, "scale": 1.0, "positions": positions}], max_tokens=20)
    if request.steering is None:
        pytest.fail("the request is steered")
    [edit] = request.steering.edits
    hot = replace(request.steering, edits=(replace(edit, raw_scale=3e38),), strength=1000.0)
    return replace(request, steering=hot)


@pytest.mark.parametrize("slots", [1, 2, 4])
@pytest.mark.parametrize("positions", ["prompt", "generated"])
def test_a_row_that_overflowed_leaves_nothing_in_its_slot(llama: Runtime, slots: int, positions: str) -> None:
    short = ask(llama, "x", None, max_tokens=30, num_logprobs=3)
    with fresh_engine(llama, start=False, slots=slots) as engine:
        stepper = Stepper(engine)
        stepper.submit(short)
        stepper.finish()
        expected = stepper.answer(0)
    with fresh_engine(llama, start=False, slots=slots) as engine:
        stepper = Stepper(engine)
        stepper.submit(*[overflowing_at(llama, positions)] * slots)
        stepper.finish()
        stepper.submit(*[replace(short, prompt_ids=(120 + number,)) for number in range(slots)])
        stepper.finish()
        assert stepper.answer(slots) == expected


def test_a_failed_decode_step_leaves_those_that_only_waited(llama: Runtime) -> None:
    with fresh_engine(llama, slots=3, start=False) as engine:
        stepper = Stepper(engine)
        numbers = stepper.submit(*(ask(llama, f"{TEXT} {number}") for number in range(5)))
        with failing(llama, num_rows=3, num_tokens=1):
            for _ in range(20):
                stepper.step()
        stepper.finish()
    assert [error_of(stepper.events[number]) is None for number in numbers] == [False, False, False, True, True]


def test_prompt_logprobs_are_never_nan(llama: Runtime) -> None:
    with fresh_engine(llama, start=False) as engine:
        stepper = Stepper(engine)
        [number] = stepper.submit(overflowing(llama, max_tokens=0, num_prompt_logprobs=1))
        stepper.finish()
    last = stepper.events[number][-1]
    if not isinstance(last, Exception):
        assert all(math.isfinite(entry.logprob) for entry in last.prompt_logprobs or () if entry is not None)


def test_what_waits_in_an_engine_that_never_started_hears_of_its_stop(llama: Runtime) -> None:
    with fresh_engine(llama, start=False) as engine:
        stepper = Stepper(engine)
        [number] = stepper.submit(ask(llama, TEXT))
        engine.stop()
    assert error_of(stepper.events[number]) is not None


@pytest.mark.slow
@pytest.mark.parametrize(("d_mlp", "threads"), [(90, 1), (112, 1), (4864, 4)])
def test_isolation_holds_for_any_width_of_the_mlp_and_any_number_of_threads(
    d_mlp: int, threads: int, tmp_path: Path
) -> None:
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=48,
        intermediate_size=d_mlp,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        bos_token_id=IM_START_ID,
        eos_token_id=IM_END_ID,
        pad_token_id=PAD_ID,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    before = torch.get_num_threads()
    engine_settings = {"slots": 16, "context": CONTEXT, "threads": threads}
    settings = Settings.model_validate(
        {"model": {"source": str(tmp_path), "device": "cpu"}, "dictionaries": [], "engine": engine_settings}
    )
    try:
        runtime = build_runtime(settings)
        requests = [ask(runtime, f"{number} text", max_tokens=12, num_logprobs=3) for number in range(17)]
        with fresh_engine(runtime, slots=17) as engine:
            together = run(engine, *requests)
        for request, answer in zip(requests, together, strict=True):
            with fresh_engine(runtime, slots=1) as engine:
                assert run(engine, request) == [answer]
    finally:
        torch.set_num_threads(before)
