"""What cannot be trained is refused before anything is loaded, and options survive being written down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from steerserve.core.errors import ConfigError
from steerserve.training.options import DEFAULT_RESAMPLE, DictionaryOptions, Grid, TrainOptions


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("id", "../res17"),
        ("id", "a" * 65),
        ("hook", "ln_final"),
        ("architecture", "relu"),
        ("dtype", "int8"),
        ("d_sae", 0),
        ("k", 5000),
        ("lr", 0.0),
        ("l1_coefficient", -1.0),
        ("l1_coefficient", float("inf")),
        ("resample", (0.5, 1.0)),
    ],
)
def test_a_dictionarys_value_out_of_range_is_refused_by_name(name: str, value: object) -> None:
    good: dict[str, Any] = {"id": "res17"}
    with pytest.raises(ConfigError) as caught:
        DictionaryOptions(**{**good, name: value})
    assert caught.value.param == name
    assert repr(value) in caught.value.message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("corpus", ()),
        ("dictionaries", ()),
        ("tokens", 1),
        ("batch_size", 1),
        ("seed", -1),
        ("epochs", 0),
        ("context_size", 4),
        ("storage", "tape"),
        ("buffer_mb", 0),
    ],
)
def test_a_runs_value_out_of_range_is_refused_by_name(name: str, value: object) -> None:
    good: dict[str, Any] = {"out": Path("out"), "corpus": ("text",), "dictionaries": (DictionaryOptions("res17"),)}
    with pytest.raises(ConfigError) as caught:
        TrainOptions(**{**good, name: value})
    assert caught.value.param == name


def test_the_penalty_is_the_architectures_own_unless_given() -> None:
    assert DictionaryOptions("a", architecture="standard").sparsity == 5.0
    assert DictionaryOptions("a", architecture="standard", l1_coefficient=0.0).sparsity == 0.0
    assert DictionaryOptions("a").sparsity == 0.0


def test_resampling_is_on_for_the_architectures_that_have_no_remedy_of_their_own() -> None:
    assert DictionaryOptions("a", architecture="standard").resampling == DEFAULT_RESAMPLE
    assert DictionaryOptions("a", architecture="gated").resampling == DEFAULT_RESAMPLE
    assert DictionaryOptions("a").resampling == ()
    assert DictionaryOptions("a", architecture="standard", resample=()).resampling == ()
    assert DictionaryOptions("a", resample=(0.5,)).resampling == (0.5,)


def test_a_grid_names_its_dictionaries_by_what_tells_them_apart() -> None:
    hooks = ["blocks.3.hook_resid_post", "blocks.5.attn.hook_z"]
    assert [one.id for one in Grid("a").dictionaries()] == ["a"]
    assert [one.id for one in Grid("a", hooks).dictionaries()] == ["a-3.resid_post", "a-5.z"]
    assert [one.id for one in Grid("a", widths=[64, 128, 64]).dictionaries()] == ["a-64", "a-128"]
    both = Grid("a", hooks, [64, 128], {"k": 4}).dictionaries()
    assert [one.id for one in both] == ["a-3.resid_post-64", "a-3.resid_post-128", "a-5.z-64", "a-5.z-128"]
    assert {one.k for one in both} == {4}


def test_options_survive_being_written_as_json() -> None:
    dictionaries = (DictionaryOptions("a", resample=(0.5,)), DictionaryOptions("b", d_sae=64))
    options = TrainOptions(out=Path("out"), corpus=("text", "self"), dictionaries=dictionaries, epochs=3)
    assert TrainOptions.from_json(json.loads(json.dumps(options.to_json()))) == options


def test_short_runs_take_smaller_batches_and_measure_less() -> None:
    def options(tokens: int, **more: object) -> TrainOptions:
        settings: dict[str, Any] = {"out": Path("out"), "corpus": ("text",), "tokens": tokens, **more}
        return TrainOptions(dictionaries=(DictionaryOptions("a"),), **settings)

    assert (options(60_000).num_epochs, options(60_000).tokens_a_step, options(60_000).num_heldout_tokens) == (
        3,
        512,
        3000,
    )
    assert (options(1_000_000).num_epochs, options(1_000_000).tokens_a_step) == (6, 2048)
    assert options(1_000_000).num_heldout_tokens == 16_384
    assert options(60_000, batch_size=4096, heldout_tokens=10, epochs=1).tokens_a_step == 4096
    assert options(60_000, storage="buffer").num_epochs == 1
