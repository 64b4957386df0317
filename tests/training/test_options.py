"""What cannot be trained is refused before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from steerserve.core.errors import ConfigError
from steerserve.training.options import TrainOptions


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("id", "../res17"),
        ("hook", "blocks.17.mlp.hook_post"),
        ("architecture", "relu"),
        ("dtype", "int8"),
        ("corpus", ()),
        ("d_sae", 0),
        ("k", 5000),
        ("tokens", 0),
        ("context_size", 4),
        ("lr", 0.0),
        ("l1_coefficient", -1.0),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name: str, value: object) -> None:
    good = {"id": "res17", "out": Path("out"), "corpus": (Path("text"),)}
    with pytest.raises(ConfigError) as caught:
        TrainOptions(**{**good, name: value})  # type: ignore[arg-type]
    assert caught.value.param == name
    assert repr(value) in caught.value.message


def test_the_penalty_is_the_architectures_own_unless_given() -> None:
    def options(architecture: str, l1: float | None = None) -> TrainOptions:
        return TrainOptions(
            id="a",
            out=Path("out"),
            corpus=(Path("text"),),
            architecture=architecture,  # type: ignore[arg-type]
            l1_coefficient=l1,
        )

    assert options("standard").sparsity == 5.0
    assert options("standard", 0.0).sparsity == 0.0
    assert options("batchtopk").sparsity == 0.0
