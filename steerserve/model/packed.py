"""Linear layers whose rows do not depend on how many rows are computed together.

On a CPU the default matrix product sums in another order for 1, 4 or 16 rows, so a request's tokens could depend on
the other requests. oneDNN's kernels over a pre-packed weight give each row the same bits for any number of rows from
two on (`tests/model/test_packed.py`), and are faster between 4 and 64 rows.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

MIN_ROWS = 2
"""Smallest number of rows that the engine computes; a single row would use another kernel."""

_LANES = 32
"""Number of elements in vector lanes; multiples of it leave no element outside them."""
_ONE_THREAD = 32768
"""Number of elements below which torch uses one thread."""
_ACTIVATIONS = tuple({type(ACT2FN[name]) for name in ACT2FN} - {nn.ReLU})


class PackedLinear(nn.Module):
    """A frozen linear layer `[..., d_in] -> [..., d_out]` whose weight is kept in oneDNN's own layout."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Pack `weight [d_out, d_in]`, without keeping the plain copy."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), None)  # noqa: SLF001 it has no public name
        self.register_buffer("bias", None if bias is None else bias.detach(), persistent=False)

    @property
    def weight(self) -> Tensor:
        """The plain weight `[d_out, d_in]`, unpacked on each access."""
        return torch.Tensor(self._packed.to_dense())

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer. A single row is computed as two, so that it has the same bits as among others."""
        num_rows = x.numel() // self.in_features
        if not num_rows:  # an expert without tokens
            return x.new_empty(*x.shape[:-1], self.out_features)
        if num_rows < MIN_ROWS:
            doubled = x.reshape(num_rows, self.in_features).expand(MIN_ROWS, self.in_features)
            out: Tensor = self._product(doubled)[:num_rows]
            return out.reshape(*x.shape[:-1], self.out_features)
        return self._product(x)

    def _product(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")  # noqa: SLF001
        return out

    def extra_repr(self) -> str:
        """Show the sizes."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def pack_linears(module: nn.Module) -> int:
    """Replace every `nn.Linear` and `Conv1D` below `module` by a `PackedLinear`; return how many were replaced.

    Subclasses are not replaced, as their forward may do more.
    """
    num_packed = 0
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) not in {nn.Linear, Conv1D}:
                continue
            weight, bias = child.get_parameter("weight"), getattr(child, "bias", None)
            setattr(parent, name, PackedLinear(weight.T if type(child) is Conv1D else weight, bias))
            num_packed += 1
    return num_packed


def num_weights(module: nn.Module) -> int:
    """Count the weights below `module`, packed ones included."""
    packed = (layer for layer in module.modules() if isinstance(layer, PackedLinear))
    num_packed = sum(layer.in_features * layer.out_features for layer in packed)
    return num_packed + sum(parameter.numel() for parameter in module.parameters())


class RowwiseActivation(nn.Module):
    """An activation function that gives a row the same bits for any number of rows, in decode steps.

    torch computes most elements in vector lanes and the last few of each thread's share one by one. The two round
    differently in functions such as SiLU. Rows are therefore padded to whole lanes, and computed in blocks that are
    small enough for one thread.
    """

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        """Wrap an elementwise function."""
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function."""
        width = x.shape[-1]
        is_decode = x.shape[-2] == 1 or x.ndim == 2  # noqa: PLR2004 some models flatten rows and positions
        if not is_decode or (width % _LANES == 0 and x.numel() < _ONE_THREAD):
            out: Tensor = self.activation(x)
            return out
        padded = nn.functional.pad(x, (0, -width % _LANES))
        blocks = padded.split(max((_ONE_THREAD - 1) // padded.shape[-1], 1))
        return torch.cat([self.activation(block) for block in blocks])[..., :width]


def wrap_activations(module: nn.Module) -> None:
    """Wrap every activation function below `module` in a `RowwiseActivation`."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _ACTIVATIONS):
                setattr(parent, name, RowwiseActivation(child))


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether layers on `device` in `dtype` can be packed on this machine."""
    return device.type == "cpu" and dtype is torch.float32 and torch.backends.mkldnn.is_available()
