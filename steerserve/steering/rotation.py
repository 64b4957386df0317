"""Random directions in place of real ones: a rotation of the whole space, which keeps every length and every angle.

What several edits add up to has the same length after it as before, on every token. Each single direction comes to
lie like one drawn at random: its cosine with any fixed direction is about `1 / sqrt(width)`.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

_ROUNDS = 3
"""One leaves patterns where a vector has few components; after three none is left that a test finds."""


def rotated(vectors: Float[Tensor, "*rows width"], seed: int) -> Float[Tensor, "*rows width"]:
    """Return the vectors after the rotation (or reflection) of that seed, the same on every device.

    Source: Ailon and Chazelle 2009, random signs and an orthogonal transform in turns; here the discrete Hartley
    transform, which is real, orthogonal and of any width.
    """
    width = vectors.shape[-1]
    turned = vectors.double()
    for signs in _signs(width, seed).to(vectors.device):
        spectrum = torch.fft.fft(turned * signs)
        turned = (spectrum.real - spectrum.imag) / width**0.5
    return turned.to(vectors.dtype)


@functools.lru_cache(maxsize=256)
def _signs(width: int, seed: int) -> Float[Tensor, "rounds width"]:
    generator = torch.Generator().manual_seed(seed)
    return 2.0 * torch.randint(2, (_ROUNDS, width), generator=generator).double() - 1.0
