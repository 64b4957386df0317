"""Everything that a scan counts for the features of one dictionary, in memory that does not grow with the text."""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING

import torch

from steerserve.interpret.peak_tokens import PeakTokens
from steerserve.interpret.pool import Candidates, SnippetPool
from steerserve.interpret.scanned_rows import ABSENT, REACH, ScannedRows, mixed
from steerserve.interpret.spread import Spread
from steerserve.store.records import NUM_INTERVALS, NUM_TOP_SNIPPETS, SNIPPETS_PER_INTERVAL, TextSnippet

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from jaxtyping import Float, Int
    from torch import Tensor

_LAST_TOKEN = 2**31 - 1
_KEY_BITS = 24
"""Bits of a key: a float32 holds no more exactly."""


class Tally:
    """Counts and snippets of the features so far.

    Snippets of an interval are drawn as a reservoir: those with the highest keys, which are hashes of the text and the
    feature. Intervals are fifths of the range up to the maximum. If the maximum grows, the snippets move to the
    intervals that they are in then; the draw is uniform over the text after the last growth.
    """

    def __init__(self, d_sae: int, vocab_size: int, device: torch.device) -> None:
        """Begin without text."""
        self.d_sae = d_sae
        self.spread = Spread(d_sae, device)
        self.peak_tokens = PeakTokens(d_sae, vocab_size, device)
        self._strongest = SnippetPool(d_sae, NUM_TOP_SNIPPETS, device)
        self._drawn = SnippetPool(d_sae * NUM_INTERVALS, SNIPPETS_PER_INTERVAL, device)

    def add(self, rows: ScannedRows, acts: Float[Tensor, "tokens d_sae"]) -> None:
        """Count the activations over 0 of some tokens, and keep snippets around the best."""
        token, feature = (acts > 0).nonzero(as_tuple=True)
        act = acts[token, feature]
        grown = self.spread.add(len(acts), feature, act)
        self._add_peaks(rows, acts, token, feature, act)
        self._regroup(grown.nonzero().flatten())
        key = mixed(rows.identity[token] ^ mixed(feature)) >> (64 - _KEY_BITS)
        score = (key + 2 ** (_KEY_BITS - 1) + 1).float() / 2**_KEY_BITS
        offered = Candidates(self._interval(feature, act), score, rows.identity[token], rows.row[token])
        self._drawn.offer(offered, lambda chosen: rows.cut(token[chosen], feature[chosen], acts))

    def tensors(self) -> dict[str, Tensor]:
        """Return the state, for a checkpoint."""
        parts: dict[str, Spread | PeakTokens | SnippetPool] = {
            "spread": self.spread,
            "peaks": self.peak_tokens,
            "strongest": self._strongest,
            "drawn": self._drawn,
        }
        return {f"{part}.{name}": tensor for part, counts in parts.items() for name, tensor in counts.tensors().items()}

    def load(self, saved: Mapping[str, Tensor]) -> None:
        """Restore the state that `tensors` returned."""
        for name, tensor in self.tensors().items():
            if not name.startswith("peaks."):
                tensor.copy_(saved[name])
        self.peak_tokens.load({name.removeprefix("peaks."): tensor for name, tensor in saved.items()})

    def snippets(self) -> Iterator[tuple[TextSnippet, ...]]:
        """Yield each feature's snippets: the strongest first, then those of the intervals that are not among these."""
        drawn = {
            name: tensor.view(self.d_sae, -1, *tensor.shape[2:]).cpu() for name, tensor in self._drawn.tensors().items()
        }
        identities = self._strongest.identity.tolist()
        for feature, strongest in enumerate(self.strongest()):
            seen = set(identities[feature][: len(strongest)])
            slots = []
            candidates = zip(drawn["score"][feature].tolist(), drawn["identity"][feature].tolist(), strict=True)
            for slot, (score, identity) in enumerate(candidates):
                if score > 0 and identity not in seen:
                    seen.add(identity)
                    slots.append(slot)
            intervals = (slot // SNIPPETS_PER_INTERVAL for slot in slots)
            yield (*strongest, *_snippets(drawn["ids"][feature][slots], drawn["acts"][feature][slots], intervals))

    def strongest(self) -> Iterator[tuple[TextSnippet, ...]]:
        """Yield each feature's strongest snippets."""
        counts = (self._strongest.score > 0).sum(dim=1).tolist()
        for ids, acts, count in zip(self._strongest.ids.cpu(), self._strongest.acts.cpu(), counts, strict=True):
            yield tuple(_snippets(ids[:count], acts[:count], repeat(None)))

    def _add_peaks(
        self,
        rows: ScannedRows,
        acts: Float[Tensor, "tokens d_sae"],
        token: Int[Tensor, " active"],
        feature: Int[Tensor, " active"],
        act: Float[Tensor, " active"],
    ) -> None:
        """Count each feature's highest activation in each row, the first of equals, and offer its snippet."""
        # As integers, floats over 0 have the same order. High bits: activation; low bits: higher for earlier tokens.
        ranks = act.contiguous().view(torch.int32).long() << 32 | (_LAST_TOKEN - token)
        num_rows = len(rows.ids)
        highest = torch.zeros(num_rows * self.d_sae, dtype=torch.long, device=acts.device)
        highest.scatter_reduce_(0, rows.row[token] * self.d_sae + feature, ranks, "amax")
        peaks = highest.nonzero().flatten()
        feature, token = peaks % self.d_sae, _LAST_TOKEN - (highest[peaks] & _LAST_TOKEN)
        self.peak_tokens.add(feature, rows.ids[rows.row[token], rows.pos[token]])
        offered = Candidates(feature, acts[token, feature], rows.identity[token], rows.row[token])
        self._strongest.offer(offered, lambda chosen: rows.cut(token[chosen], feature[chosen], acts))

    def _regroup(self, grown: Int[Tensor, " grown"]) -> None:
        """Move the drawn snippets of features whose maximum has grown to the intervals that they are in now."""
        groups = (grown[:, None] * NUM_INTERVALS + torch.arange(NUM_INTERVALS, device=grown.device)).flatten()
        taken, cut = self._drawn.take(groups)
        _, acts = cut(torch.arange(len(taken.group), device=grown.device))
        group = self._interval(taken.group // NUM_INTERVALS, acts[:, REACH])
        self._drawn.offer(taken._replace(group=group), cut)

    def _interval(self, feature: Int[Tensor, " n"], act: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
        fifth = (NUM_INTERVALS * act / self.spread.maximum[feature]).long().clamp(max=NUM_INTERVALS - 1)
        return feature * NUM_INTERVALS + fifth


def _snippets(
    ids: Int[Tensor, "snippets width"], acts: Float[Tensor, "snippets width"], intervals: Iterable[int | None]
) -> Iterator[TextSnippet]:
    """Yield snippets without absent tokens, which are the first and the last ones."""
    is_present = ids != ABSENT
    peaks, nexts = is_present[:, :REACH].sum(dim=1).tolist(), is_present[:, REACH:].sum(dim=1).tolist()
    for row, values, peak, following, interval in zip(
        ids.tolist(), acts.tolist(), peaks, nexts, intervals, strict=False
    ):
        present = slice(REACH - peak, REACH + following)
        yield TextSnippet(tuple(row[present]), tuple(values[present]), peak, interval)
