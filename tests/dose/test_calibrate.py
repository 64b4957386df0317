"""Doses and output scores against their definitions, measured by whole forward passes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from steerserve.core.observer import StoppedError
from steerserve.dose.calibrate import calibrate, calibrate_features, calibrate_vector, output_score, prepare_texts
from steerserve.dose.dose_search import DoseSearch, find_doses
from steerserve.dose.percentile import percentile
from steerserve.dose.prompts import PROMPT_TOKENS, calibration_ids
from steerserve.dose.pushed_text import PushedText
from steerserve.engine.background import run_pieces
from steerserve.model.norms import measure_norms
from tests.dose.pushing import divergences, dose_by_bisection
from tests.tiny import D_MODEL
from tests.training.quiet import Quiet

if TYPE_CHECKING:
    from torch import Tensor

    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.runtime import Runtime
    from steerserve.store.records import Calibration


def dictionary_of(runtime: Runtime, name: str) -> Dictionary:
    return runtime.registry.snapshot().dictionaries[name]


def one_unit(dictionary: Dictionary, feature: int, x: Tensor) -> Tensor:
    """Return what one more unit of a feature's activation does to the stream, by SAELens' own code."""
    acts = dictionary.encode(x)
    more = acts.clone()
    more[:, feature] += 1
    return dictionary.decode(x, more) - dictionary.decode(x, acts)


@torch.inference_mode()
def calibrated(runtime: Runtime, name: str, features: list[int]) -> dict[int, Calibration]:
    dictionary = dictionary_of(runtime, name)
    built_in = run_pieces(prepare_texts(runtime.lens, dictionary))
    return run_pieces(calibrate(runtime.lens, dictionary, built_in, features))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["planted", "standard", "topk", "normalised", "late", "mlp", "z"])
def test_a_dose_is_that_of_the_definition(llama: Runtime, name: str) -> None:
    dictionary = dictionary_of(llama, name)
    [(feature, found)] = calibrated(llama, name, [5]).items()
    with torch.inference_mode():
        wanted = dose_by_bisection(
            llama.lens, dictionary.hook_name, dictionary.median_norm, lambda x: one_unit(dictionary, feature, x)
        )
    assert found.dose == pytest.approx(wanted, rel=0.1)


def test_most_features_are_within_a_few_percent_of_their_own_measurement(llama: Runtime) -> None:
    dictionary = dictionary_of(llama, "standard")
    medians = {dictionary.hook_name: dictionary.median_norm}
    for feature, found in calibrated(llama, "standard", list(range(12))).items():
        change = found.dose * dictionary.sae.W_dec.detach()[feature]
        nats = divergences(llama.lens, {dictionary.hook_name: lambda _, change=change: change}, medians)  # type: ignore[misc]
        assert 0.8 < float(percentile(nats[None], 0.95)) < 1.25


def test_a_calibration_does_not_depend_on_which_others_are_measured(llama: Runtime) -> None:
    together = calibrated(llama, "standard", [3, 1, 60, 17, 4])
    for feature in (60, 3):
        assert calibrated(llama, "standard", [feature])[feature].dose == pytest.approx(together[feature].dose, rel=1e-4)


def test_a_dictionary_with_longer_directions_has_smaller_doses(llama: Runtime) -> None:
    dictionary = dictionary_of(llama, "standard")
    norms = dictionary.sae.W_dec.detach().norm(dim=-1)
    found = calibrated(llama, "standard", list(range(40)))
    lengths = torch.tensor([found[feature].dose * float(norms[feature]) for feature in range(40)])
    doses = torch.tensor([found[feature].dose for feature in range(40)])
    assert lengths.std() / lengths.mean() < doses.std() / doses.mean()


def test_output_score_is_that_of_the_best_token() -> None:
    logits = torch.tensor([0.0, 3.0, 2.0, 1.0, -1.0])
    probs = logits.softmax(-1)
    assert output_score(logits, [2, 4]) == pytest.approx(float((1 - 1 / 5) * probs[2]))
    assert output_score(logits, [1]) == pytest.approx(float(probs[1]))
    assert output_score(logits, []) == 0.0


def test_output_scores_come_from_the_promoted_tokens_that_are_given(llama: Runtime) -> None:
    dictionary, found = dictionary_of(llama, "standard"), {}
    for promoted in (None, {5: range(259)}, {5: ()}):
        written: dict[int, Calibration] = {}
        calibrate_features(llama.lens, dictionary, [5], promoted=promoted, observer=Quiet(), write=written.update)
        found[str(promoted)] = written[5].output_score
    own, everything, nothing = found.values()
    assert nothing == 0 <= own <= everything


def test_what_is_stopped_goes_on_with_what_is_left(llama: Runtime) -> None:
    dictionary = dictionary_of(llama, "standard")
    written: dict[int, Calibration] = {}

    def run(features: list[int], observer: Quiet) -> None:
        calibrate_features(llama.lens, dictionary, features, promoted=None, observer=observer, write=written.update)

    with pytest.raises(StoppedError):
        run(list(range(96)), Quiet(stop_at=1))
    assert 0 < len(written) < 96
    run([feature for feature in range(96) if feature not in written], Quiet(stop_at=1))
    assert sorted(written) == list(range(96))


@torch.inference_mode()
def test_what_is_felt_in_few_places_is_measured_on_more_text(llama: Runtime) -> None:
    dictionary = dictionary_of(llama, "standard")
    built_in = run_pieces(prepare_texts(llama.lens, dictionary))
    directions = {dictionary.hook_name: dictionary.sae.W_dec.detach()[:4]}

    def doses(more: PushedText | None) -> list[float]:
        searches = [DoseSearch(built_in.usual_dose) for _ in range(4)]
        return [dose or 0.0 for dose in run_pieces(find_doses(built_in.text, directions, searches, more))]

    assert doses(built_in.more) == doses(None)
    # From here on all pushes are felt four times as much in the first text as in the others.
    gains = {dictionary.hook_name: lambda x: 1 + 3 * (torch.arange(len(x)) < PROMPT_TOKENS).float()}
    medians = {dictionary.hook_name: dictionary.median_norm}
    built_in = replace(built_in, text=PushedText(llama.lens, calibration_ids(llama.tokenizer), medians, gains=gains))
    strengths = torch.tensor(doses(built_in.more))[:, None]
    assert (strengths[:, 0] > 1.05 * torch.tensor(doses(None))).all()
    pushes = {name: strengths * some for name, some in directions.items()}
    nats = torch.cat([run_pieces(text.divergences(pushes)) for text in (built_in.text, built_in.more)], dim=1)
    assert all(0.7 < one < 1.4 for one in percentile(nats, 0.95).tolist())


@torch.inference_mode()
def test_a_vector_has_the_dose_of_a_feature_that_writes_the_same(llama: Runtime) -> None:
    dictionary = dictionary_of(llama, "standard")
    medians = {dictionary.hook_name: dictionary.median_norm}
    vector = {dictionary.hook_name: dictionary.sae.W_dec.detach()[5]}
    dose = run_pieces(calibrate_vector(llama.lens, vector, medians))
    assert dose == pytest.approx(calibrated(llama, "standard", [5])[5].dose, rel=0.05)


@torch.inference_mode()
def test_the_layers_of_a_vector_are_one_dose_together(llama: Runtime) -> None:
    medians = {name: median for name, (median, _) in measure_norms(llama.lens).items()}
    generator = torch.Generator().manual_seed(4)
    layers = {f"blocks.{layer}.hook_resid_post": torch.randn(D_MODEL, generator=generator) for layer in range(2)}
    dose = run_pieces(calibrate_vector(llama.lens, layers, medians))
    assert dose is not None
    changes = {name: (lambda _, added=dose * values: added) for name, values in layers.items()}
    assert 0.8 < float(percentile(divergences(llama.lens, changes, medians)[None], 0.95)) < 1.25


@torch.inference_mode()
def test_a_vector_of_zeros_has_no_dose(llama: Runtime) -> None:
    name = "blocks.0.hook_resid_post"
    assert run_pieces(calibrate_vector(llama.lens, {name: torch.zeros(D_MODEL)}, {name: 1.0})) is None


@pytest.mark.parametrize("exponent", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("start", [1e-3, 1.0, 40.0, 1e4])
def test_a_search_finds_the_mark_of_any_power_law(start: float, exponent: float) -> None:
    search = DoseSearch(start)
    while not search.has_ended:
        search.add_measurement((search.strength / 17.0) ** exponent)
    assert search.dose == pytest.approx(17.0, rel=0.35)


def test_a_search_for_what_never_comes_ends_without_a_dose() -> None:
    for nats in (0.0, 0.2, float("inf")):
        search = DoseSearch(1.0)
        while not search.has_ended:
            search.add_measurement(nats)
        assert search.dose is None


def test_a_search_finds_a_mark_that_is_a_step() -> None:
    search = DoseSearch(1.0)
    while not search.has_ended:
        search.add_measurement(0.1 if search.strength < 5 else 1.3)
    assert search.dose is not None
