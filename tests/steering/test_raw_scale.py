"""What the units of a scale come to, in raw numbers and in the stream."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch

from steerserve.core.errors import InvalidRequestError
from steerserve.model.norms import measure_norms
from steerserve.runtime import Runtime, build_runtime
from steerserve.store.store import FeatureStore
from steerserve.store.stored import StoreMeta
from tests.engine.harness import ask, run
from tests.interpret.known import byte_of, feature
from tests.tiny import D_MODEL, HOOK_NAME, planted_sae_folder, tiny_sae_folder, tiny_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.steering.resolved import ResolvedEdit

E0 = "steering.edits[0]"
VECTOR = {"hook": HOOK_NAME, "values": [0.5] * D_MODEL}
DEAD, ZERO = 7, 9


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    """Serve `res0`, which was interpreted, `plain`, which was not, and `hole`, a feature of which writes nothing."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("units")
    settings = tiny_settings(folder, engine={"threads": 1})
    dictionaries = folder / "dictionaries"
    tiny_sae_folder(dictionaries / "plain", seed=3)
    hole = planted_sae_folder(dictionaries / "hole") / "sae_weights.safetensors"
    weights = load_file(hole)
    weights["W_dec"][ZERO] = 0
    save_file(weights, hole)
    with build_runtime(settings) as started:
        for name in ("plain", "hole"):
            started.dictionary_library.load(name, f"path:{dictionaries / name}")
        dictionary = dictionary_of(started, "res0")
        path = started.stores.location(dictionary).own
        store = FeatureStore.create(path, StoreMeta(dictionary.sha256, dictionary.d_sae, "tiny", num_tokens=100))
        store.write_features([feature(3, maximum=2.5), feature(DEAD, active=0, maximum=0.0)], byte_of)
        yield started


def dictionary_of(runtime: Runtime, name: str) -> Dictionary:
    return runtime.registry.snapshot().dictionaries[name]


def resolved(runtime: Runtime, edit: dict[str, Any], **full: Any) -> ResolvedEdit:  # noqa: ANN401
    steering = runtime.resolve_steering({"edits": [edit], **full})
    assert steering is not None
    return steering.edits[0]


@pytest.mark.parametrize("mode", ["add", "clamp", "floor", "ceiling"])
def test_max_counts_the_largest_activation_of_the_interpretation(served: Runtime, mode: str) -> None:
    edit = resolved(served, {"feature": 3, "mode": mode, "scale": -4.0, "unit": "max"})
    assert (edit.scale, edit.unit, edit.raw_scale) == (-4.0, "max", -10.0)


@pytest.mark.parametrize("name", ["standard", "topk", "planted", "mlp", "z"])
def test_norm_is_a_change_of_that_part_of_the_mean_norm(llama: Runtime, name: str) -> None:
    dictionary = dictionary_of(llama, name)
    edit = resolved(llama, {"feature": 5, "dictionary": name, "scale": 0.25, "unit": "norm"})
    [direction] = dictionary.directions(torch.tensor([5]))
    assert edit.raw_scale is not None
    assert edit.raw_scale * float(direction.norm()) == pytest.approx(0.25 * dictionary.mean_norm, rel=1e-4)


def test_norm_of_a_dictionary_that_normalises_its_input_is_right_for_a_usual_token(llama: Runtime) -> None:
    dictionary = dictionary_of(llama, "normalised")
    edit = resolved(llama, {"feature": 5, "dictionary": "normalised", "scale": 0.25, "unit": "norm"})
    x = torch.randn(20, D_MODEL, generator=torch.Generator().manual_seed(1))
    x *= dictionary.mean_norm / x.norm(dim=-1, keepdim=True)
    with torch.no_grad():
        acts = dictionary.encode(x)
        more = acts.clone()
        more[:, 5] += edit.raw_scale or 0.0
        change: Tensor = dictionary.decode(x, more) - dictionary.decode(x, acts)
    assert float(change.norm(dim=-1).mean()) == pytest.approx(0.25 * dictionary.mean_norm, rel=0.05)


def test_norm_of_a_vector_counts_the_hook_points_own_mean(llama: Runtime) -> None:
    for hook_name, (_, mean) in measure_norms(llama.lens).items():
        vector = {"hook": hook_name, "values": [0.5] * D_MODEL}
        edit = resolved(llama, {"vector": vector, "scale": -0.5, "unit": "norm"})
        assert edit.raw_scale is not None
        assert edit.raw_scale * 0.5 * math.sqrt(D_MODEL) == pytest.approx(-0.5 * mean, rel=1e-4)


def test_a_dose_is_proportional_and_the_other_way_where_it_is_negative(served: Runtime) -> None:
    one, two, other, clamp = (
        resolved(served, {"feature": 5, "dictionary": "plain", "unit": "dose", **edit}).raw_scale
        for edit in ({"scale": 1}, {"scale": 2.0}, {"scale": -1.0}, {"scale": 1.0, "mode": "clamp"})
    )
    assert one is not None
    assert one > 0
    assert [two, other, clamp] == pytest.approx([2 * one, -one, one])


def test_a_vector_has_doses_too(served: Runtime) -> None:
    one = resolved(served, {"vector": VECTOR, "scale": 1.0, "unit": "dose"}).raw_scale
    longer = {**VECTOR, "values": [5.0] * D_MODEL}
    ten = resolved(served, {"vector": longer, "scale": 10.0, "unit": "dose"}).raw_scale
    assert one == pytest.approx(ten, rel=0.01)


@pytest.mark.parametrize("unit", ["raw", "max", "norm", "dose"])
def test_nothing_of_any_unit_is_nothing(served: Runtime, unit: str) -> None:
    edit = resolved(served, {"feature": 3, "scale": 0.0, "unit": unit})
    assert edit.raw_scale == 0
    assert not edit.has_effect


def test_strength_multiplies_the_change_and_not_the_raw_scale(served: Runtime) -> None:
    edit = {"feature": 3, "scale": 2.0, "unit": "max", "special_tokens": True}
    assert resolved(served, edit, strength=0.5).raw_scale == 5.0
    answers = [
        run(served.engine, ask(served, "A text.", {"edits": [some], "strength": strength}))[0]
        for some, strength in ((edit, 0.5), ({**edit, "scale": 1.0}, 1.0))
    ]
    assert answers[0].token_ids == answers[1].token_ids
    changes = [(answer.receipt or {})["edits"][0]["mean_change"] for answer in answers]
    assert changes[0] == pytest.approx(changes[1])


@pytest.mark.parametrize("unit", ["max", "norm", "dose"])
def test_a_unit_steers_as_the_raw_scale_does_that_it_comes_to(served: Runtime, unit: str) -> None:
    edit = {"feature": 3, "scale": 0.75, "unit": unit}
    raw_scale = resolved(served, edit).raw_scale
    [counted], [raw] = (
        run(served.engine, ask(served, "A text.", [some]))
        for some in (edit, {"feature": 3, "scale": raw_scale, "unit": "raw"})
    )
    assert counted.token_ids == raw.token_ids
    assert counted.receipt is not None
    assert raw.receipt is not None
    assert counted.receipt["fingerprint"] == raw.receipt["fingerprint"]
    [told] = counted.receipt["edits"]
    assert (told["scale"], told["unit"], told["raw_scale"]) == (0.75, unit, raw_scale)
    [told] = raw.receipt["edits"]
    assert (told["scale"], told["unit"], told["raw_scale"]) == (raw_scale, "raw", raw_scale)


@pytest.mark.parametrize(
    ("mode", "scale", "unit"), [("multiply", 2.0, None), ("ablate", None, None), ("add", 2.0, "raw")]
)
def test_receipts_say_raw_only_where_there_is_a_unit(
    served: Runtime, mode: str, scale: float | None, unit: str | None
) -> None:
    edit = {"feature": 3, "mode": mode, **({} if scale is None else {"scale": scale})}
    [answer] = run(served.engine, ask(served, "A text.", [edit], max_tokens=1))
    assert answer.receipt is not None
    assert answer.receipt["edits"][0]["unit"] == unit


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"feature": 3, "mode": "clamp", "scale": 1.0, "unit": "norm"}, "unit", "raw, max or dose"),
    ({"feature": 3, "mode": "floor", "scale": 1.0, "unit": "dose"}, "unit", "raw or max"),
    ({"feature": 3, "mode": "ceiling", "scale": 1.0, "unit": "norm"}, "unit", "raw or max"),
    ({"feature": 3, "mode": "multiply", "scale": 1.0, "unit": "dose"}, "unit", "takes no unit"),
    ({"feature": 3, "mode": "ablate", "unit": "dose"}, "unit", "takes no unit"),
    ({"vector": VECTOR, "mode": "remove", "unit": "norm"}, "unit", "takes no unit"),
    ({"vector": VECTOR, "scale": 1.0, "unit": "max"}, "unit", "raw, norm or dose"),
    ({"feature": 3, "scale": 1.0, "unit": "max", "dictionary": "plain"}, "unit", "steerserve interpret"),
    ({"feature": DEAD, "scale": 1.0, "unit": "max"}, "feature", "never active"),
    ({"feature": 11, "scale": 1.0, "unit": "max"}, "unit", "Interpret"),
    ({"feature": ZERO, "scale": 1.0, "unit": "norm", "dictionary": "hole"}, "feature", "zero direction"),
    ({"feature": ZERO, "scale": 1.0, "unit": "dose", "dictionary": "hole"}, "feature", "zero direction"),
    ({"vector": {**VECTOR, "values": [0.0] * D_MODEL}, "scale": 1.0, "unit": "norm"}, "vector", "zero"),
    ({"vector": {**VECTOR, "values": [0.0] * D_MODEL}, "scale": 1.0, "unit": "dose"}, "vector", "zero"),
    ({"feature": 3, "scale": 1e6, "unit": "max"}, "scale", "1e+06"),
    ({"feature": 3, "scale": -1e6, "unit": "dose"}, "scale", "dose"),
]


@pytest.mark.parametrize(("edit", "field", "hint"), REFUSED, ids=[str(place) for place in range(len(REFUSED))])
def test_a_unit_that_cannot_be_counted_is_refused(served: Runtime, edit: dict[str, Any], field: str, hint: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        served.resolve_steering([edit])
    assert caught.value.param == f"{E0}.{field}"
    assert hint in caught.value.message
    assert caught.value.message.endswith(".")
