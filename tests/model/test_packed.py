"""Packed linear layers: a row's bits never depend on how many rows are computed with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from steerserve.model.packed import PackedLinear, pack_linears

if TYPE_CHECKING:
    from collections.abc import Iterator

SHAPES = [(48, 96), (48, 259), (37, 90), (576, 192), (576, 1536), (1536, 576)]


@pytest.fixture(params=[1, 2], autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compute with several numbers of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def random_layer(d_in: int, d_out: int, *, bias: bool = True) -> tuple[nn.Linear, PackedLinear]:
    torch.manual_seed(d_in * d_out)
    layer = nn.Linear(d_in, d_out, bias=bias).requires_grad_(requires_grad=False)
    return layer, PackedLinear(layer.weight, layer.bias if bias else None)


@pytest.mark.parametrize(("d_in", "d_out"), SHAPES)
def test_rows_have_the_same_bits_for_every_count_of_rows(d_in: int, d_out: int) -> None:
    _, packed = random_layer(d_in, d_out)
    x = torch.randn(64, d_in)
    whole = packed(x)
    for num_rows in range(1, 65):
        assert torch.equal(packed(x[:num_rows]), whole[:num_rows]), num_rows


@pytest.mark.parametrize(("d_in", "d_out"), SHAPES)
@pytest.mark.parametrize("bias", [False, True])
def test_a_packed_layer_computes_what_the_plain_one_does(d_in: int, d_out: int, bias: bool) -> None:
    layer, packed = random_layer(d_in, d_out, bias=bias)
    for shape in ((1, d_in), (1, 1, d_in), (5, d_in), (2, 3, d_in), (16, 1, d_in)):
        x = torch.randn(shape)
        torch.testing.assert_close(packed(x), layer(x), atol=1e-4, rtol=1e-4)


def test_the_weight_comes_out_as_it_went_in() -> None:
    layer, packed = random_layer(37, 90)
    assert torch.equal(packed.weight, layer.weight)


def test_linear_layers_and_conv1d_are_replaced_and_their_subclasses_left() -> None:
    class Other(nn.Linear):
        """Does more than a linear layer, for all that is known."""

    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(Conv1D(6, 8), nn.Linear(6, 4, bias=False)), Other(4, 4))
    model.requires_grad_(requires_grad=False)
    x = torch.randn(3, 8)
    before = model(x)
    assert pack_linears(model) == 3
    assert type(model[2]) is Other
    torch.testing.assert_close(model(x), before, atol=1e-5, rtol=1e-5)
