"""Counts at which tokens each feature peaks, while the text streams by; rare tokens are forgotten."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor

_MERGE_EVERY = 8
"""Calls of `add` between two merges."""
_KEPT = 64
"""Tokens of a feature that are kept if the counts are pruned, which happens at twice as many tokens on average."""


class PeakTokens:
    """Counts of pairs of a feature and a token."""

    def __init__(self, d_sae: int, vocab_size: int, device: torch.device) -> None:
        """Begin without peaks."""
        self._d_sae, self._vocab_size = d_sae, vocab_size
        self._pairs = torch.zeros(0, dtype=torch.long, device=device)
        """Pairs as `feature * vocab_size + token`, ascending."""
        self._counts = torch.zeros(0, dtype=torch.long, device=device)
        self._unmerged: list[Tensor] = []
        self._num_additions = 0
        self.num_peaks = torch.zeros(d_sae, dtype=torch.long, device=device)
        """Number of peaks of each feature, those at forgotten tokens included."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the state, for a checkpoint."""
        # Merging early changes nothing; forgetting early would.
        self._merge()
        num_additions = torch.tensor(self._num_additions)
        parts = {"pairs": self._pairs, "counts": self._counts}
        return {**parts, "num_peaks": self.num_peaks, "num_additions": num_additions}

    def load(self, saved: dict[str, Tensor]) -> None:
        """Restore the state that `tensors` returned."""
        device = self.num_peaks.device
        self._pairs, self._counts = saved["pairs"].to(device), saved["counts"].to(device)
        self.num_peaks, self._num_additions = saved["num_peaks"].to(device), int(saved["num_additions"])

    def add(self, feature: Int[Tensor, " peaks"], token_id: Int[Tensor, " peaks"]) -> None:
        """Count peaks."""
        self.num_peaks += torch.bincount(feature, minlength=self._d_sae)
        self._unmerged.append(feature * self._vocab_size + token_id)
        self._num_additions += 1
        if self._num_additions % _MERGE_EVERY == 0:
            self._merge()
            if len(self._pairs) > 2 * _KEPT * self._d_sae:
                self._forget()

    def most_frequent(self, count: int) -> list[tuple[tuple[int, int], ...]]:
        """Return for each feature the token ids at which it peaked most often, each with its count."""
        self._merge()
        feature, order, rank = self._ranked()
        pairs: list[list[tuple[int, int]]] = [[] for _ in range(self._d_sae)]
        chosen = order[rank < count]
        token_ids = (self._pairs[chosen] % self._vocab_size).tolist()
        counts = self._counts[chosen].tolist()
        for index, token_id, count_of_token in zip(feature[chosen].tolist(), token_ids, counts, strict=True):
            pairs[index].append((token_id, count_of_token))
        return [tuple(pairs_of_feature) for pairs_of_feature in pairs]

    def _merge(self) -> None:
        if not self._unmerged:
            return
        new = torch.cat(self._unmerged)
        pairs, inverse = torch.unique(torch.cat([self._pairs, new]), return_inverse=True)
        counts = torch.zeros_like(pairs)
        self._counts = counts.scatter_add_(0, inverse, torch.cat([self._counts, torch.ones_like(new)]))
        self._pairs = pairs
        self._unmerged = []

    def _forget(self) -> None:
        _, order, rank = self._ranked()
        kept = order[rank < _KEPT].sort().values
        self._pairs, self._counts = self._pairs[kept], self._counts[kept]

    def _ranked(self) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
        """Return each pair's feature, the order by feature and frequency, and the ranks in that order."""
        feature = self._pairs // self._vocab_size
        order = self._counts.argsort(descending=True, stable=True)
        order = order[feature[order].argsort(stable=True)]
        counts = torch.bincount(feature, minlength=self._d_sae)
        starts = counts.cumsum(0) - counts
        rank = torch.arange(len(order), device=order.device) - starts[feature[order]]
        return feature, order, rank
