"""Wrong shapes are errors in tests."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

from steerserve.contrast.separation import rank_features
from steerserve.dictionaries.dictionary import FeatureColumns
from steerserve.steering.apply import Reads, TokenRoles, read


def reads(num_reads: int = 3, d_in: int = 4) -> Reads:
    table = torch.ones(1, num_reads)
    columns = torch.arange(num_reads)[None]
    return Reads(torch.ones(1, num_reads, d_in), table, table, table, table, table, columns)


def test_shapes_that_fit_are_taken() -> None:
    assert read(torch.ones(2, 4), reads(d_in=4)).shape == (2, 3)


@pytest.mark.parametrize("x", [torch.ones(4), torch.ones(1, 2, 4), torch.ones(2, 4, dtype=torch.int64)])
def test_an_argument_of_another_shape_or_kind_is_an_error(x: torch.Tensor) -> None:
    with pytest.raises(TypeCheckError, match="x"):
        read(x, reads())


def test_one_name_is_one_size() -> None:
    ones = torch.ones(3)
    FeatureColumns(torch.ones(3, 4), ones, ones, ones, ones, torch.ones(3, 5))
    with pytest.raises(TypeCheckError, match="decoder"):
        FeatureColumns(torch.ones(3, 4), ones, ones, ones, ones, torch.ones(2, 5))


def test_fields_of_named_tuples_are_checked_too() -> None:
    with pytest.raises(TypeCheckError, match="is_special"):
        TokenRoles(torch.ones(3, 1), torch.ones(3))


def test_arrays_are_checked_as_tensors_are() -> None:
    assert inspect.unwrap(rank_features) is not rank_features
    with pytest.raises(TypeCheckError, match="acts"):
        rank_features(np.ones(3, dtype=np.float32), 1, 1)


def test_checks_are_installed_before_the_package_is_imported() -> None:
    """A module of ours with shapes that was imported without the hook would never be checked."""
    from tests.shapes.hook import CHECKED, PACKAGE

    modules = [(module, module.__file__) for name, module in sys.modules.items() if name.startswith(PACKAGE)]
    with_shapes = [module for module, file in modules if file and b"from jaxtyping import" in Path(file).read_bytes()]
    assert with_shapes
    assert [module.__name__ for module in with_shapes if not hasattr(module, CHECKED)] == []
