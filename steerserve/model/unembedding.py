"""The logits that a direction in the residual stream adds, up to the scale that the final norm gives each token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Unembedding:
    """The linear part of final norm and unembedding."""

    gain: Float[Tensor, " d_model"]
    """Factor by which the norm multiplies each component."""
    is_centred: bool
    """Whether the norm subtracts the mean first."""
    head: nn.Module
    """The unembedding, from the normed stream to the logits."""

    @property
    def width(self) -> int:
        """Size of the vectors that the unembedding takes."""
        return int(getattr(self.head, "in_features", len(self.gain)))

    def logits(self, directions: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows vocab"]:
        """Return the logits that each direction adds."""
        if self.is_centred:
            directions = directions - directions.mean(dim=-1, keepdim=True)
        logits: Tensor = self.head(directions * self.gain)
        bias: Tensor = self.head(torch.zeros_like(directions[:1]))
        return logits - bias if bias.any() else logits


@torch.inference_mode()
def find_unembedding(norm: nn.Module | None, head: nn.Module, like: Float[Tensor, " d_model"]) -> Unembedding:
    """Return the linear part of a norm and a head.

    The gain is measured and not read from the weights, as some architectures store it minus 1.

    Args:
        norm: The final norm; None for a model without one.
        head: The unembedding, from the normed stream to the logits.
        like: Any vector with the width, number format and device of the model.
    """
    if norm is None:
        return Unembedding(torch.ones_like(like), is_centred=False, head=head)
    # With mean 0 and mean square 1, so that a norm changes it by its gain and its bias only.
    signs = torch.ones_like(like)
    signs[1::2] = -1.0
    plus, minus = norm(signs[None])[0], norm(-signs[None])[0]
    shifted = norm(signs[None] + 1)[0]
    return Unembedding((plus - minus) / 2 * signs, bool(torch.allclose(shifted, plus, rtol=1e-2)), head)
