"""Rows of text that were scanned, from which snippets around a token are cut with a feature's activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from steerserve.store.records import SNIPPET_TOKENS

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

REACH = SNIPPET_TOKENS // 2
"""Most tokens of a snippet on each side of its peak."""
ABSENT = -1
"""Stands for a token beyond the beginning or end of a row."""
_NEAR = 10
"""Snippets that share the peak and this many tokens on each side of it count as the same text."""


@dataclass(frozen=True, slots=True)
class ScannedRows:
    """Rows of token ids, and the tokens in them that have activations."""

    ids: Int[Tensor, "rows padded"]
    """Token ids, with `REACH` absent tokens before and after each row."""
    number: Int[Tensor, "rows padded"]
    """Index of each token among those with activations; `ABSENT` for the others."""
    row: Int[Tensor, " tokens"]
    """Row of each token with activations."""
    pos: Int[Tensor, " tokens"]
    """Position of each token with activations in its padded row."""
    identity: Int[Tensor, " tokens"]
    """Hash of the text around each token with activations."""

    @classmethod
    def of(
        cls, ids: Int[Tensor, "rows pos"], real: Bool[Tensor, "rows pos"], keep: Bool[Tensor, "rows pos"]
    ) -> ScannedRows:
        """Take rows whose `real` tokens are text and whose tokens in `keep` have activations."""
        padded = torch.nn.functional.pad(ids.masked_fill(~real, ABSENT), (REACH, REACH), value=ABSENT)
        row, pos = keep.nonzero(as_tuple=True)
        number = torch.full_like(padded, ABSENT)
        number[row, pos + REACH] = torch.arange(len(row), device=ids.device)
        around = padded.unfold(1, 2 * _NEAR + 1, 1)[row, pos + REACH - _NEAR]
        identity = mixed((mixed(around) * _odd_numbers(2 * _NEAR + 1).to(ids.device)).sum(dim=1))
        return cls(padded, number, row, pos + REACH, identity)

    def cut(
        self,
        tokens: Int[Tensor, " snippets"],
        features: Int[Tensor, " snippets"],
        acts: Float[Tensor, "tokens d_sae"],
    ) -> tuple[Int[Tensor, "snippets width"], Float[Tensor, "snippets width"]]:
        """Return the snippets around some tokens, each with its feature's activations; 0 at tokens without one."""
        pos = self.pos[tokens, None] + torch.arange(-REACH, REACH + 1, device=tokens.device)
        rows = self.row[tokens, None]
        numbers = self.number[rows, pos]
        cut_acts = acts[numbers.clamp(min=0), features[:, None]].masked_fill(numbers == ABSENT, 0.0)
        return self.ids[rows, pos].int(), cut_acts


def mixed(numbers: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """Return a hash of each number.

    Source: the finaliser of splitmix64 (Steele, Lea and Flood 2014).
    """
    # A right shift copies the sign bit, which the masks remove.
    numbers = (numbers ^ ((numbers >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    numbers = (numbers ^ ((numbers >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return numbers ^ ((numbers >> 31) & 0x1FFFFFFFF)


def _odd_numbers(count: int) -> Int[Tensor, " count"]:
    return mixed(torch.arange(1, count + 1) * 0x1E3779B97F4A7C15) | 1
