"""What the model says of texts, against an oracle: plain transformers, one pass over everything, no cache, no plan."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import pytest
import torch

from steerserve.compare.arms import Arm, edited_features
from steerserve.compare.metrics import edited_means, side_effects
from steerserve.compare.scoring import Scorer
from steerserve.engine.background import run_pieces
from tests.engine.gated_oracle import GatedOracle

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from steerserve.compare.metrics import SampleScore
    from steerserve.runtime import Runtime

PROMPT = "<|im_start|>user\nTell me ~ about it, please.<|im_end|>\nwell"
EMPTY = "<|im_start|>user\n<|im_end|>\n"
TEXT = "so it <|im_start|>goes~ on, and on" * 2
VECTOR = [(-1.0) ** place * (1 + place / 20) for place in range(48)]
CASES: dict[str, Any] = {
    "everywhere": [{"feature": 3, "scale": 8.0}],
    "generated": [{"feature": 3, "mode": "clamp", "scale": 8.0, "positions": "generated"}],
    "window": [{"feature": 3, "scale": 8.0, "positions": "generated", "start": 2, "stop": 20}],
    "prompt": [{"feature": 5, "mode": "clamp", "scale": 6.0, "positions": "prompt"}],
    "ramp": [{"feature": 3, "scale": 8.0, "positions": "generated", "start": 3, "ramp": 20}],
    "gate": [{"feature": 20, "dictionary": "late", "scale": 8.0, "when": {"feature": 7, "above": 0.3}}],
    "topk": [{"feature": 1, "dictionary": "topk", "mode": "clamp", "scale": 6.0}],
    "vector": [{"vector": {"hook": "blocks.1.hook_resid_pre", "values": VECTOR}, "scale": 2.0}],
    "special": {"edits": [{"feature": 3, "scale": 8.0, "special_tokens": True}], "strength": -0.5},
    "several": [
        {"feature": 3, "scale": 4.0},
        {"feature": 5, "mode": "clamp", "scale": 3.0, "positions": "generated"},
        {"feature": 9, "mode": "ablate", "positions": "prompt"},
    ],
}


@pytest.fixture(scope="module")
def oracle(llama: Runtime, model_folders: dict[str, Path], dictionary_folders: dict[str, Path]) -> GatedOracle:
    medians = {**llama.engine.median_norms, **{one.id: one.median_norm for one in llama.dictionaries()}}
    return GatedOracle(model_folders["llama"], dictionary_folders, medians, special={256, 257, 258})


def ids_of(runtime: Runtime, text: str) -> tuple[int, ...]:
    return tuple(runtime.tokenizer.encode_plain(text))


def arm_of(runtime: Runtime, steering: object) -> Arm:
    return Arm("arm", ids_of(runtime, PROMPT), runtime.resolve_steering(steering))


def scorer_of(runtime: Runtime, *dictionaries: str) -> Scorer:
    found = [one for one in runtime.dictionaries() if one.id in dictionaries]
    return Scorer(runtime.lens, runtime.engine.median_norms, found, ids_of(runtime, EMPTY))


def read(runtime: Runtime, scorer: Scorer, arm: Arm, token_ids: tuple[int, ...]) -> SampleScore:
    """Score a text on the engine's thread, which alone may use the model."""
    work = functools.partial(run_pieces, scorer.read(arm, token_ids))
    score: SampleScore = runtime.engine.run_exclusive(work).result()
    return score


def log_probs(oracle: GatedOracle, prompt: tuple[int, ...], token_ids: tuple[int, ...], steering: object) -> Tensor:
    """Return the log-probabilities from which each token of a text was chosen, `[tokens, vocab]`."""
    logits = oracle.logits([*prompt, *token_ids], len(prompt), steering)  # type: ignore[arg-type]
    return logits[len(prompt) - 1 : -1].double().log_softmax(-1)


def taken(rows: Tensor, token_ids: tuple[int, ...]) -> Tensor:
    return rows.gather(-1, torch.tensor(token_ids)[:, None])[:, 0]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("piece", [7, 64])
def test_likelihoods_and_divergence_equal_the_oracles(
    name: str, piece: int, llama: Runtime, oracle: GatedOracle
) -> None:
    arm, token_ids = arm_of(llama, CASES[name]), ids_of(llama, TEXT)
    scorer = scorer_of(llama)
    scorer._limit = piece
    score = read(llama, scorer, arm, token_ids)
    plain, steered = (log_probs(oracle, arm.prompt_ids, token_ids, steering) for steering in (None, CASES[name]))
    empty = log_probs(oracle, ids_of(llama, EMPTY), token_ids, None)
    nats = (steered.exp() * (steered - plain)).sum(-1)
    assert score.surprise == pytest.approx(-float(taken(plain, token_ids).mean()), abs=1e-3)
    assert score.relevance == pytest.approx(float((taken(plain, token_ids) - taken(empty, token_ids)).mean()), abs=1e-3)
    assert score.kl == pytest.approx(float(nats.mean()), abs=1e-3)
    assert score.kl_p95 == pytest.approx(float(nats.quantile(0.95)), abs=1e-3)
    assert float(nats.mean()) > 0.01


@pytest.mark.parametrize("steering", [None, [], {"edits": CASES["everywhere"], "strength": 0}])
def test_what_changes_nothing_does_not_diverge_at_all(steering: object, llama: Runtime) -> None:
    score = read(llama, scorer_of(llama), arm_of(llama, steering), ids_of(llama, TEXT))
    assert (score.kl, score.kl_p95) == (0.0, 0.0)


def test_mean_activations_are_the_unsteered_models_over_the_tokens_that_count(
    llama: Runtime, oracle: GatedOracle
) -> None:
    arm, token_ids = arm_of(llama, CASES["everywhere"]), ids_of(llama, TEXT)
    scorer = scorer_of(llama, "standard", "topk")
    scorer._limit = 9
    score = read(llama, scorer, arm, token_ids)
    with torch.no_grad():
        ids = torch.tensor([[*arm.prompt_ids, *token_ids]])
        x = oracle.model(ids, output_hidden_states=True).hidden_states[1][0, len(arm.prompt_ids) :]
    for name in ("standard", "topk"):
        [dictionary] = [one for one in llama.dictionaries() if one.id == name]
        counts = torch.tensor([token_id < 256 for token_id in token_ids]) & (
            x.norm(dim=-1) <= 5 * dictionary.median_norm
        )
        assert 0 < int(counts.sum()) < len(token_ids) - TEXT.count("<|im_start|>")
        with torch.no_grad():
            expected = oracle.saes[name].encode(x[counts]).mean(0)
        torch.testing.assert_close(score.means[name], expected, atol=1e-3, rtol=0)


def test_a_text_without_a_token_says_nothing(llama: Runtime) -> None:
    steered = read(llama, scorer_of(llama, "standard"), arm_of(llama, CASES["everywhere"]), ())
    plain = read(llama, scorer_of(llama, "standard"), arm_of(llama, None), ())
    assert (steered.surprise, steered.kl, steered.relevance, steered.means) == (None, None, None, {})
    assert (plain.surprise, plain.kl) == (None, 0.0)


def test_a_prompt_is_computed_once_for_all_arms_that_leave_it_alone(llama: Runtime) -> None:
    scorer = scorer_of(llama)
    arms = [arm_of(llama, CASES[name]) for name in ("generated", "ramp", "window")] + [arm_of(llama, None)]
    for arm in arms:
        read(llama, scorer, arm, ids_of(llama, TEXT))
    assert {(ids, key) for ids, key in scorer._prompts} == {(arms[0].prompt_ids, None), (ids_of(llama, EMPTY), None)}
    read(llama, scorer, arm_of(llama, CASES["everywhere"]), ids_of(llama, TEXT))
    assert len(scorer._prompts) == 3
    again = read(llama, scorer, arms[0], ids_of(llama, TEXT))
    assert again == read(llama, scorer_of(llama), arms[0], ids_of(llama, TEXT))


def test_prompts_that_take_too_much_memory_are_read_again(llama: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steerserve.compare.scoring._KEPT_BYTES", 1)
    scorer, arm = scorer_of(llama), arm_of(llama, CASES["everywhere"])
    score = read(llama, scorer, arm, ids_of(llama, TEXT))
    assert len(scorer._prompts) == 1
    assert score == read(llama, scorer_of(llama), arm, ids_of(llama, TEXT))


def test_side_effects_are_the_largest_shifts_of_features_that_nobody_edits(llama: Runtime) -> None:
    steerings = [llama.resolve_steering(CASES[name]) for name in ("everywhere", "topk")]
    edited = edited_features([None, *steerings])
    assert [(one.dictionary.id, one.features) for one in edited] == [("standard", (3,)), ("topk", (1,))]
    scorer, text = scorer_of(llama, "standard", "topk"), ids_of(llama, TEXT)
    first, other = (read(llama, scorer, arm_of(llama, None), one) for one in (text, text[::-1]))
    shifts = side_effects(other, first, edited)
    changes = {
        (name, feature): float(change)
        for name in ("standard", "topk")
        for feature, change in enumerate(other.means[name] - first.means[name])
        if (name, feature) not in {("standard", 3), ("topk", 1)}
    }
    largest = sorted(changes, key=lambda key: -abs(changes[key]))[:8]
    assert [(shift.dictionary, shift.feature) for shift in shifts] == largest
    assert [shift.change for shift in shifts] == pytest.approx([changes[key] for key in largest])
    assert side_effects(first, first, edited) == []
    assert edited_means(other, edited)["standard"] == {3: pytest.approx(float(other.means["standard"][3]))}
