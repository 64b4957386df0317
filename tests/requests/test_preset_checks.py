"""What a preset's check measures: worked out by hand where that can be, and otherwise with the oracle's model."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
import torch

from steerserve.compare.arms import Arm
from steerserve.compare.metrics import repetition
from steerserve.engine.request import GenerationRequest, SamplingParams
from steerserve.presets.schema import Check
from steerserve.requests.preset_checks import GeneratedText, largest_activation, measure_kl, verdicts_of

if TYPE_CHECKING:
    from steerserve.runtime import Runtime
    from steerserve.steering.resolved import ResolvedSteering

PROMPT = (256, *b"Tell me", 257)


def generated(runtime: Runtime, steering: object, num: int = 12) -> tuple[tuple[int, ...], ResolvedSteering | None]:
    resolved = runtime.resolve_steering(steering)
    sampling = SamplingParams(max_tokens=num, temperature=0.0, ignore_eos=True)
    [events] = runtime.engine.generate([GenerationRequest("r", PROMPT, sampling, resolved)])
    ids = tuple(token_id for event in events for token_id in event.token_ids)
    assert len(ids) == num
    return ids, resolved


def mean_kl(runtime: Runtime, ids: tuple[int, ...], steering: ResolvedSteering | None) -> float:
    return asyncio.run(measure_kl(runtime, Arm("steered", PROMPT, steering), ids))


def largest(runtime: Runtime, ids: tuple[int, ...], dictionary: str, feature: int) -> float:
    found = runtime.registry.snapshot().find(dictionary, "dictionary")
    return asyncio.run(largest_activation(runtime, Arm("steered", PROMPT), ids, found, feature))


def test_without_edits_nothing_diverges(llama: Runtime) -> None:
    ids, _ = generated(llama, None)
    assert mean_kl(llama, ids, None) == 0.0
    assert mean_kl(llama, ids, llama.resolve_steering([{"feature": 3, "scale": 0.0}])) == 0.0


@pytest.mark.parametrize("positions", ["all", "prompt", "generated"])
@pytest.mark.parametrize("dictionary", ["standard", "topk", "late"])
def test_the_divergence_is_that_of_the_steered_engine(llama: Runtime, positions: str, dictionary: str) -> None:
    edits = [{"feature": 3, "dictionary": dictionary, "scale": 4.0, "positions": positions}]
    ids, _ = generated(llama, edits)
    resolved = llama.resolve_steering(edits)
    # Greedy tokens of the steered engine are the likeliest of the steered reading: both see the same model.
    sampling = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True, num_logprobs=259)
    requests = [GenerationRequest("r", PROMPT, sampling, one) for one in (resolved, None)]
    [events, _] = llama.engine.generate(requests)
    steered = [dict(one.top) for event in events for one in event.logprobs]
    forced = []
    for place in range(12):
        prefix = (*PROMPT, *ids[:place])
        one = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True, num_logprobs=259)
        [found] = llama.engine.generate([GenerationRequest("r", prefix, one)])
        forced.append(dict(next(iter(found[-1].logprobs or found[0].logprobs)).top))
    expected = [
        sum(torch.tensor(p).exp().item() * (p - q[token]) for token, p in row.items())
        for row, q in zip(steered, forced, strict=True)
    ]
    assert mean_kl(llama, ids, resolved) == pytest.approx(sum(expected) / 12, rel=1e-3, abs=1e-5)
    if (dictionary, positions) == ("late", "prompt"):
        # The prompt ends with a special token, which is not edited, and no token sees another after the last hook.
        assert sum(expected) == pytest.approx(0, abs=1e-5)
    else:
        assert sum(expected) > 0


def test_a_text_of_no_tokens_is_measured_where_its_end_was_chosen(llama: Runtime) -> None:
    steering = llama.resolve_steering([{"feature": 3, "scale": 9.0}])
    assert mean_kl(llama, (), steering) > 0
    assert largest(llama, (), "standard", 3) == 0.0


def test_the_activation_is_the_largest_that_the_unsteered_model_reads(llama: Runtime) -> None:
    ids, _ = generated(llama, [{"feature": 3, "scale": 6.0}])
    dictionary = llama.registry.snapshot().find("planted", "dictionary")
    read = llama.lens.read(torch.tensor([(*PROMPT, *ids)]), [dictionary.hook_name])
    values = read[dictionary.hook_name][0, len(PROMPT) :]
    plain = [place for place, token_id in enumerate(ids) if token_id < 256 and token_id != ord("~")]
    expected = max(values[plain, 2].max().item(), 0.0)
    assert largest(llama, ids, "planted", 2) == pytest.approx(expected, rel=1e-4)


def test_repetition_counts_what_was_there_before() -> None:
    assert repetition([1, 2]) == 0.0
    assert repetition([1, 2, 3, 4]) == 0.0
    assert repetition([1, 1, 1, 1, 1]) == pytest.approx(2 / 3)


def test_a_check_is_held_against_what_came_out() -> None:
    check = Check.model_validate(
        {
            "prompt": "hi",
            "activates": {"feature": 3, "above": 1.0},
            "contains_any": ["a", "b"],
            "contains_none": ["z"],
            "max_kl": 2,
            "max_repetition": 0.5,
        }
    )
    good = list(verdicts_of(check, GeneratedText("b", 1.5, 2.0, 0.5)))
    assert [verdict.is_ok for verdict in good] == [True] * 5
    bad = list(verdicts_of(check, GeneratedText("A z", 1.0, 2.1, 0.6)))
    assert [verdict.is_ok for verdict in bad] == [False] * 5
    assert [verdict.result for verdict in bad] == ["1", "none", "'z'", "2.1", "0.60"]
