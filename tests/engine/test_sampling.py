"""Choosing tokens, against distributions worked out by brute force on a small vocabulary."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steerserve.engine.request import GenerationRequest, SamplingParams
from steerserve.engine.sampling import LOGPROB_FLOOR, _candidates, choose, gumbel_noise, read_logprob
from steerserve.engine.sequence import Sequence
from steerserve.model.tokenizer import Tokenizer
from tests.tiny import IM_END_ID, VOCAB_SIZE, byte_tokenizer

TOKENIZER = Tokenizer(byte_tokenizer(), frozenset({IM_END_ID}))
CPU = torch.device("cpu")
QUICK = settings(max_examples=80, deadline=None, derandomize=True)


def sequence_of(
    prompt: tuple[int, ...] = (1,),
    sample_index: int = 0,
    **sampling: Any,  # noqa: ANN401 any of SamplingParams
) -> Sequence:
    params = SamplingParams(**{"max_tokens": 100, **sampling})
    request = GenerationRequest("test", prompt, params, sample_index=sample_index)
    return Sequence(request, TOKENIZER, lambda _: None)


def choice(logits: torch.Tensor, sequence: Sequence) -> int:
    [chosen] = choose(logits[None], [sequence])
    assert chosen.token_id is not None
    return chosen.token_id


def allowed(logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float) -> set[int]:
    """Filter as the words say: the k likeliest, the smallest nucleus of these, what of it reaches min_p of the best."""
    weights = [math.exp((value - max(logits)) / temperature) for value in logits]
    order = sorted(range(len(logits)), key=lambda token_id: -weights[token_id])[: top_k or None]
    total = sum(weights[token_id] for token_id in order)
    kept: list[int] = []
    mass = 0.0
    for token_id in order:
        if mass / total >= top_p:
            break
        kept.append(token_id)
        mass += weights[token_id]
    return {token_id for token_id in kept if weights[token_id] >= min_p * weights[order[0]]}


@QUICK
@given(
    seed=st.integers(0, 1 << 30),
    temperature=st.sampled_from([0.2, 0.7, 1.0, 1.7]),
    top_k=st.sampled_from([0, 1, 2, 3, 7, 12, 50]),
    top_p=st.sampled_from([0.01, 0.3, 0.62, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.03, 0.3, 1.0]),
)
def test_the_choice_is_the_best_of_the_allowed_tokens_with_noise(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = 2 * torch.randn(12, generator=torch.Generator().manual_seed(seed))
    tokens = allowed(logits.tolist(), temperature, top_k, top_p, min_p)
    for sample_index in range(4):
        sequence = sequence_of(
            temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed, sample_index=sample_index
        )
        noise = gumbel_noise(12, seed, sample_index, 0, CPU)
        best = max(tokens, key=lambda token_id: float(logits[token_id] / temperature + noise[token_id]))
        assert choice(logits, sequence) == best


def test_samples_follow_the_distribution() -> None:
    probabilities = torch.tensor([0.5, 0.25, 0.15, 0.07, 0.03])
    num = 3000
    counts = torch.zeros(5)
    for seed in range(num):
        counts[choice(probabilities.log(), sequence_of(seed=seed))] += 1
    error = (counts / num - probabilities).abs()
    assert bool((error < 4 * (probabilities * (1 - probabilities) / num).sqrt()).all())


def test_noise_depends_on_seed_sample_and_position_and_nothing_else() -> None:
    base = gumbel_noise(50, 1, 2, 3, CPU)
    assert torch.equal(base, gumbel_noise(50, 1, 2, 3, CPU))
    for key in ((2, 2, 3), (1, 1, 3), (1, 2, 4), (12, 3, 0), (1, 23, 0)):
        assert not torch.equal(base, gumbel_noise(50, *key, CPU))
    assert torch.isfinite(base).all()


@pytest.mark.parametrize("seed", [0, -1, -(1 << 63), (1 << 63) - 1, 1 << 64])
def test_any_integer_is_a_seed(seed: int) -> None:
    assert torch.isfinite(gumbel_noise(10, seed, 0, 0, CPU)).all()


def test_drawing_noise_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    choice(torch.randn(20, generator=torch.Generator().manual_seed(0)), sequence_of(seed=1))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("spread", [0.01, 1.0, 5.0])
@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.999])
def test_a_nucleus_may_be_wider_than_the_first_candidates(top_p: float, spread: float) -> None:
    scaled = spread * torch.randn(6000, generator=torch.Generator().manual_seed(3))
    values, ids = _candidates(scaled, 0, top_p)
    kept = int((values > -math.inf).sum())
    order = scaled.double().softmax(-1).sort(descending=True)
    exact = int((order.values.cumsum(-1) - order.values < top_p).sum())
    assert abs(kept - exact) <= max(2, exact // 500)
    assert set(ids[:kept].tolist()) == set(order.indices[:kept].tolist())


@pytest.mark.parametrize("temperature", [1e-3, 1e-8, 1e-30, 1e-40, 5e-324])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_a_tiny_temperature_is_greedy(temperature: float, top_p: float) -> None:
    logits = torch.tensor([3.0, 9.0, -40.0, 8.9, 1.0])
    assert choice(logits, sequence_of(temperature=temperature, top_p=top_p, seed=1)) == 1


def test_greedy_takes_the_best_and_ignores_the_filters() -> None:
    logits = torch.tensor([1.0, 5.0, 4.9])
    assert choice(logits, sequence_of(temperature=0.0, top_k=2, top_p=0.1, seed=7)) == 1


def test_a_bias_moves_the_choice_and_not_the_logprobs() -> None:
    logits = torch.tensor([1.0, 5.0, 4.0])
    [chosen] = choose(logits[None], [sequence_of(temperature=0.0, logit_bias={0: 4.5, 1: -100.0}, num_logprobs=3)])
    assert chosen.token_id == 0
    assert chosen.logprob is not None
    assert chosen.logprob.logprob == pytest.approx(float(logits.log_softmax(-1)[0]))
    assert [token_id for token_id, _ in chosen.logprob.top] == [1, 2, 0]


def test_presence_and_frequency_count_generated_tokens_alone() -> None:
    sequence = sequence_of((0, 0, 0), temperature=0.0, presence_penalty=1.0, frequency_penalty=0.5)
    logits = torch.full((300,), -20.0)
    logits[:4] = torch.tensor([5.0, 4.2, 3.3, 1.0])
    chosen = []
    for _ in range(6):
        chosen.append(choice(logits, sequence))
        sequence.generated.append(chosen[-1])
    # 0: 5.0 -> 3.5 after one, 3.0 after two; 1: 4.2 -> 2.7; 2: 3.3 -> 1.8
    assert chosen == [0, 1, 0, 2, 0, 1]


def test_repetition_counts_the_prompt_too_and_pushes_negative_logits_down() -> None:
    logits = torch.full((300,), -20.0)
    logits[:3] = torch.tensor([4.0, 3.0, -1.0])
    assert choice(logits, sequence_of((0,), temperature=0.0, repetition_penalty=2.0)) == 1
    assert choice(logits, sequence_of((5,), temperature=0.0, repetition_penalty=2.0)) == 0
    negative = torch.full((300,), -20.0)
    negative[:2] = torch.tensor([-1.0, -1.5])
    assert choice(negative, sequence_of((0,), temperature=0.0, repetition_penalty=2.0)) == 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_ending_token_is_chosen_before_min_tokens(temperature: float) -> None:
    logits = torch.zeros(VOCAB_SIZE)
    logits[IM_END_ID], logits[65], logits[66] = 90.0, 80.0, 70.0
    sequence = sequence_of(temperature=temperature, min_tokens=2, stop_token_ids=(65,), seed=3)
    for _ in range(2):
        assert choice(logits, sequence) == 66
        sequence.generated.append(66)
    assert choice(logits, sequence) == IM_END_ID


def test_a_row_that_is_not_finite_has_no_choice_and_its_neighbours_do() -> None:
    logits = torch.zeros(3, 5)
    logits[:, 2] = 1.0
    logits[1, 3] = math.nan
    chosen = choose(logits, [sequence_of(temperature=0.0) for _ in range(3)])
    assert [found.token_id for found in chosen] == [2, None, 2]


def test_every_row_is_chosen_by_its_own_parameters() -> None:
    logits = torch.randn(4, 40, generator=torch.Generator().manual_seed(5))
    params: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 1.5, "seed": 4},
        {"temperature": 0.9, "top_k": 3, "seed": 9},
        {"temperature": 0.0, "logit_bias": {7: 50.0}},
    ]
    together = [found.token_id for found in choose(logits, [sequence_of(**own) for own in params])]
    assert together == [choice(row, sequence_of(**own)) for row, own in zip(logits, params, strict=True)]


def test_logprobs_are_floored_so_that_json_can_hold_them() -> None:
    logprobs = torch.tensor([0.0, -math.inf, -math.inf])
    entry = read_logprob(logprobs, 1, 3)
    assert entry.logprob == LOGPROB_FLOOR
    assert [value for _, value in entry.top] == [0.0, LOGPROB_FLOOR, LOGPROB_FLOOR]


def test_more_logprobs_than_tokens_are_all_tokens() -> None:
    assert len(read_logprob(torch.zeros(3), 0, 10).top) == 3
    assert read_logprob(torch.zeros(3), 0, 0).top == ()
