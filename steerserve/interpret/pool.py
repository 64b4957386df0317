"""Keeps the best snippets of many groups while the text streams by. Knows neither features nor what a score means."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from steerserve.interpret.scanned_rows import ABSENT, mixed
from steerserve.store.records import SNIPPET_TOKENS

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float, Int
    from torch import Tensor

    Cut = Callable[[Tensor], tuple[Tensor, Tensor]]
    """Returns token ids and activations, `[chosen, SNIPPET_TOKENS]` each, of the candidates with some indexes."""


class Candidates(NamedTuple):
    """Snippets that could be kept; their tokens and activations are not cut yet."""

    group: Int[Tensor, " candidates"]
    """Group that each belongs to."""
    score: Float[Tensor, " candidates"]
    """Score of each, over 0; the highest are kept."""
    identity: Int[Tensor, " candidates"]
    """Hash of the text of each; a group keeps the best snippet of each text."""
    row: Int[Tensor, " candidates"]
    """Row of text of each; a group takes at most one snippet of a row."""


class SnippetPool:
    """The `size` snippets with the highest scores of each group; takes the same memory for any text."""

    def __init__(self, num_groups: int, size: int, device: torch.device) -> None:
        """Begin without snippets."""
        shape = (num_groups, size)
        self.score = torch.zeros(shape, device=device)
        """Scores of each group in descending order; 0 for a slot without a snippet."""
        self.identity = torch.zeros(shape, dtype=torch.long, device=device)
        self.ids = torch.full((*shape, SNIPPET_TOKENS), ABSENT, dtype=torch.int32, device=device)
        self.acts = torch.zeros((*shape, SNIPPET_TOKENS), device=device)

    def tensors(self) -> dict[str, Tensor]:
        """Return the state, for a checkpoint to save or fill."""
        return {"score": self.score, "identity": self.identity, "ids": self.ids, "acts": self.acts}

    def offer(self, offered: Candidates, cut: Cut) -> None:
        """Keep the candidates that are better than the snippets here; `cut` is called for these alone."""
        group, score, identity, row = offered
        chosen = (score > self.score[:, -1][group]).nonzero().flatten()
        num_rows = int(row.max()) + 1 if len(row) else 1
        for key in (group * num_rows + row, mixed(identity ^ mixed(group))):
            chosen = chosen[_best_of_each(key[chosen], score[chosen])]
        chosen = chosen[self._without_repeats(group[chosen], score[chosen], identity[chosen])]
        chosen = chosen[_in_order(group[chosen], score[chosen])]
        self._merge(offered, chosen, cut)

    def take(self, groups: Int[Tensor, " groups"]) -> tuple[Candidates, Cut]:
        """Empty some groups; return their snippets, to be offered again."""
        index, slot = (self.score[groups] > 0).nonzero(as_tuple=True)
        group = groups[index]
        ids, acts = self.ids[group, slot], self.acts[group, slot]
        # A row of its own for each: at most one snippet of a row was taken when they were first offered.
        rows = torch.arange(len(group), device=group.device)
        taken = Candidates(group, self.score[group, slot], self.identity[group, slot], rows)
        self.score[groups] = 0.0
        self.ids[groups] = ABSENT
        self.acts[groups] = 0.0
        return taken, lambda chosen: (ids[chosen], acts[chosen])

    def _without_repeats(
        self, group: Int[Tensor, " chosen"], score: Float[Tensor, " chosen"], identity: Int[Tensor, " chosen"]
    ) -> Int[Tensor, " left"]:
        """Return the candidates whose text the group lacks, or has with a lower score: that snippet is dropped."""
        kept = self.score[group]
        is_same = (self.identity[group] == identity[:, None]) & (kept > 0)
        is_better = score[:, None] > kept
        candidate, slot = (is_same & is_better).nonzero(as_tuple=True)
        self.score[group[candidate], slot] = 0.0
        return (~(is_same & ~is_better).any(dim=1)).nonzero().flatten()

    def _merge(self, offered: Candidates, chosen: Int[Tensor, " chosen"], cut: Cut) -> None:
        """Merge candidates, ordered by group and then by descending score, into the snippets here."""
        size = self.score.shape[1]
        groups, inverse, counts = torch.unique_consecutive(
            offered.group[chosen], return_inverse=True, return_counts=True
        )
        rank = torch.arange(len(chosen), device=chosen.device) - (counts.cumsum(0) - counts)[inverse]
        is_near = rank < size
        chosen, inverse, rank = chosen[is_near], inverse[is_near], rank[is_near]
        # Columns 0 to size - 1 are the snippets here, columns size to 2 * size - 1 the candidates.
        score = torch.cat([self.score[groups], self.score.new_zeros(len(groups), size)], dim=1)
        score[inverse, size + rank] = offered.score[chosen]
        identity = torch.cat([self.identity[groups], torch.zeros_like(self.identity[groups])], dim=1)
        identity[inverse, size + rank] = offered.identity[chosen]
        candidate = torch.zeros_like(identity)
        candidate[inverse, size + rank] = chosen
        score, source = (part[:, :size] for part in score.sort(dim=1, descending=True, stable=True))
        slots = source.clamp(max=size - 1)[..., None].expand(-1, -1, self.ids.shape[-1])
        ids, acts = self.ids[groups].gather(1, slots), self.acts[groups].gather(1, slots)
        is_new = (source >= size) & (score > 0)
        ids[is_new], acts[is_new] = cut(candidate.gather(1, source)[is_new])
        self.score[groups], self.identity[groups] = score, identity.gather(1, source)
        self.ids[groups], self.acts[groups] = ids, acts


def _best_of_each(key: Int[Tensor, " n"], score: Float[Tensor, " n"]) -> Int[Tensor, " best"]:
    order = _in_order(key, score)
    sorted_key = key[order]
    is_first = torch.ones_like(sorted_key, dtype=torch.bool)
    is_first[1:] = sorted_key[1:] != sorted_key[:-1]
    return order[is_first]


def _in_order(key: Int[Tensor, " n"], score: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Return the order by key, then by descending score; equals keep their order."""
    order = score.argsort(descending=True, stable=True)
    return order[key[order].argsort(stable=True)]
