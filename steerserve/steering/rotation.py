"""Random directions for controls: a rotation of the whole space, which keeps every length and every angle.

The sum of several edits has the same length after the rotation, on every token. Each single direction becomes like one
drawn at random: its cosine with any fixed direction is about `1 / sqrt(width)`.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

_ROUNDS = 3
"""Number of rounds. One leaves patterns of sparse vectors; after three, tests find none."""


def rotated(vectors: Float[Tensor, "*rows width"], seed: int) -> Float[Tensor, "*rows width"]:
    """Return the vectors rotated (or reflected) by that seed, the same on every device.

    Source: Ailon and Chazelle 2009, "The fast Johnson-Lindenstrauss transform", section 2: random signs and an
    orthogonal transform in turns. Here that is the discrete Hartley transform, real, orthogonal and of any width.
    """
    width = vectors.shape[-1]
    rotated_vectors = vectors.double()
    for signs in _signs(width, seed).to(vectors.device):
        spectrum = torch.fft.fft(rotated_vectors * signs)
        rotated_vectors = (spectrum.real - spectrum.imag) / width**0.5
    return rotated_vectors.to(vectors.dtype)


@functools.lru_cache(maxsize=256)
def _signs(width: int, seed: int) -> Float[Tensor, "rounds width"]:
    generator = torch.Generator().manual_seed(seed)
    return 2.0 * torch.randint(2, (_ROUNDS, width), generator=generator).double() - 1.0
