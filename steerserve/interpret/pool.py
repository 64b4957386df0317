"""The best snippets of many groups, kept while the text streams by. Knows neither features nor what a score means."""

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
    """Gives token ids and activations, `[chosen, SNIPPET_TOKENS]` each, of candidates by their numbers."""


class Candidates(NamedTuple):
    """Snippets that could be kept; nothing of them is computed yet but this."""

    group: Int[Tensor, " candidates"]
    score: Float[Tensor, " candidates"]
    """Over 0; the highest are kept."""
    identity: Int[Tensor, " candidates"]
    """Of snippets with the same one, a group keeps the best."""
    row: Int[Tensor, " candidates"]
    """A group takes one snippet of a row at most."""


class SnippetPool:
    """For each of `num_groups` groups the `size` snippets of the highest scores; its size never changes."""

    def __init__(self, num_groups: int, size: int, device: torch.device) -> None:
        """Begin with no snippet."""
        shape = (num_groups, size)
        self.score = torch.zeros(shape, device=device)
        """0 where there is no snippet; each group's are in descending order."""
        self.identity = torch.zeros(shape, dtype=torch.long, device=device)
        self.ids = torch.full((*shape, SNIPPET_TOKENS), ABSENT, dtype=torch.int32, device=device)
        self.acts = torch.zeros((*shape, SNIPPET_TOKENS), device=device)

    def tensors(self) -> dict[str, Tensor]:
        """Return the state, to be saved or filled."""
        return {"score": self.score, "identity": self.identity, "ids": self.ids, "acts": self.acts}

    def offer(self, offered: Candidates, cut: Cut) -> None:
        """Keep those that are better than what is there; `cut` is asked only for them."""
        group, score, identity, row = offered
        chosen = (score > self.score[:, -1][group]).nonzero().flatten()
        num_rows = int(row.max()) + 1 if len(row) else 1
        for key in (group * num_rows + row, mixed(identity ^ mixed(group))):
            chosen = chosen[_best_of_each(key[chosen], score[chosen])]
        chosen = chosen[self._without_known(group[chosen], score[chosen], identity[chosen])]
        chosen = chosen[_in_order(group[chosen], score[chosen])]
        self._merge(offered, chosen, cut)

    def take(self, groups: Int[Tensor, " groups"]) -> tuple[Candidates, Cut]:
        """Empty some groups; return what was in them, to be offered to others."""
        place, slot = (self.score[groups] > 0).nonzero(as_tuple=True)
        at = groups[place]
        ids, acts = self.ids[at, slot], self.acts[at, slot]
        # Snippets of one row may come together again: they have been thinned out once.
        rows = torch.arange(len(at), device=at.device)
        taken = Candidates(at, self.score[at, slot], self.identity[at, slot], rows)
        self.score[groups] = 0.0
        self.ids[groups] = ABSENT
        self.acts[groups] = 0.0
        return taken, lambda chosen: (ids[chosen], acts[chosen])

    def _without_known(
        self, group: Int[Tensor, " chosen"], score: Float[Tensor, " chosen"], identity: Int[Tensor, " chosen"]
    ) -> Int[Tensor, " left"]:
        """Drop candidates of which the group has the text already, or what it has where the candidate is better."""
        kept = self.score[group]
        is_same = (self.identity[group] == identity[:, None]) & (kept > 0)
        is_better = score[:, None] > kept
        place, slot = (is_same & is_better).nonzero(as_tuple=True)
        self.score[group[place], slot] = 0.0
        return (~(is_same & ~is_better).any(dim=1)).nonzero().flatten()

    def _merge(self, offered: Candidates, chosen: Int[Tensor, " chosen"], cut: Cut) -> None:
        """Put candidates, in the order of their groups and then from the highest score, among what is there."""
        size = self.score.shape[1]
        groups, inverse, counts = torch.unique_consecutive(
            offered.group[chosen], return_inverse=True, return_counts=True
        )
        rank = torch.arange(len(chosen), device=chosen.device) - (counts.cumsum(0) - counts)[inverse]
        is_near = rank < size
        chosen, inverse, rank = chosen[is_near], inverse[is_near], rank[is_near]
        # Columns 0 to size - 1 are what is kept, the others what is offered.
        score = torch.cat([self.score[groups], self.score.new_zeros(len(groups), size)], dim=1)
        score[inverse, size + rank] = offered.score[chosen]
        identity = torch.cat([self.identity[groups], torch.zeros_like(self.identity[groups])], dim=1)
        identity[inverse, size + rank] = offered.identity[chosen]
        candidate = torch.zeros_like(identity)
        candidate[inverse, size + rank] = chosen
        score, source = (found[:, :size] for found in score.sort(dim=1, descending=True, stable=True))
        at = source.clamp(max=size - 1)[..., None].expand(-1, -1, self.ids.shape[-1])
        ids, acts = self.ids[groups].gather(1, at), self.acts[groups].gather(1, at)
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
    """Return the order by key, and of the same key from the highest score; the first of equals comes first."""
    order = score.argsort(descending=True, stable=True)
    return order[key[order].argsort(stable=True)]
