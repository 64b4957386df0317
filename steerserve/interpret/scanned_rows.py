"""The text of some rows, from which snippets around a token are cut, with a feature's activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from steerserve.store.records import SNIPPET_TOKENS

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

REACH = SNIPPET_TOKENS // 2
"""Tokens of a snippet on each side of its peak."""
ABSENT = -1
"""Stands for a token where the row has none."""
_NEAR = 10
"""Snippets that share this many tokens on each side of the peak, and the peak, are the same text."""


@dataclass(frozen=True, slots=True)
class ScannedRows:
    """Tokens whose activations are known, and the rows that they stand in."""

    ids: Int[Tensor, "rows padded"]
    """With `REACH` absent tokens before and behind."""
    number: Int[Tensor, "rows padded"]
    """Which of the tokens stands there; `ABSENT` for those that are left out."""
    row: Int[Tensor, " tokens"]
    place: Int[Tensor, " tokens"]
    """In the padded row."""
    identity: Int[Tensor, " tokens"]
    """The same for the same text around the token, and hardly ever for another."""

    @classmethod
    def of(
        cls, ids: Int[Tensor, "rows pos"], real: Bool[Tensor, "rows pos"], keep: Bool[Tensor, "rows pos"]
    ) -> ScannedRows:
        """Take rows of which `real` tokens are text, and those of `keep` have activations."""
        padded = torch.nn.functional.pad(ids.masked_fill(~real, ABSENT), (REACH, REACH), value=ABSENT)
        row, place = keep.nonzero(as_tuple=True)
        number = torch.full_like(padded, ABSENT)
        number[row, place + REACH] = torch.arange(len(row), device=ids.device)
        around = padded.unfold(1, 2 * _NEAR + 1, 1)[row, place + REACH - _NEAR]
        identity = mixed((mixed(around) * _odd_numbers(2 * _NEAR + 1).to(ids.device)).sum(dim=1))
        return cls(padded, number, row, place + REACH, identity)

    def cut(
        self,
        tokens: Int[Tensor, " snippets"],
        features: Int[Tensor, " snippets"],
        acts: Float[Tensor, "tokens d_sae"],
    ) -> tuple[Int[Tensor, "snippets width"], Float[Tensor, "snippets width"]]:
        """Return the snippets around some tokens, each with its feature's activations: 0 where there is none."""
        places = self.place[tokens, None] + torch.arange(-REACH, REACH + 1, device=tokens.device)
        rows = self.row[tokens, None]
        numbers = self.number[rows, places]
        found = acts[numbers.clamp(min=0), features[:, None]].masked_fill(numbers == ABSENT, 0.0)
        return self.ids[rows, places].int(), found


def mixed(numbers: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """Return numbers that look random, each the same for the same.

    Source: the finaliser of splitmix64 (Steele, Lea and Flood 2014).
    """
    # A shift to the right keeps the sign, which the masks take away.
    numbers = (numbers ^ ((numbers >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    numbers = (numbers ^ ((numbers >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return numbers ^ ((numbers >> 31) & 0x1FFFFFFFF)


def _odd_numbers(count: int) -> Int[Tensor, " count"]:
    return mixed(torch.arange(1, count + 1) * 0x1E3779B97F4A7C15) | 1
