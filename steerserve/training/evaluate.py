"""What a dictionary keeps of the model: its reconstruction in place of what it reads, on text never trained on.

Special tokens and sinks stay as they are in every arm, as they do when serving.
"""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from steerserve.core.errors import CorpusError
from steerserve.core.observer import StoppedError
from steerserve.model.norms import counted_tokens

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from jaxtyping import Bool, Float
    from sae_lens import SAE
    from torch import Tensor

    from steerserve.core.observer import Observer
    from steerserve.model.lens import LensModel
    from steerserve.text.windows import WindowBatch

DENSE_SHARE = 0.1
"""A feature that is active on more tokens than this share is dense."""
FEATURE_TOKENS = 200_000
"""Tokens over which features are counted: one that never fires on them is dead."""
_CHUNK = 8192
_BINS_PER_DECADE = 4
_LEAST_EXPONENT = -6


@dataclass(frozen=True, slots=True)
class SpliceMetrics:
    """Means over held-out tokens; losses and divergence in nats."""

    tokens: int
    ce_clean: float
    ce_spliced: float
    ce_mean_ablated: float
    ce_zero_ablated: float
    ce_recovered: float
    """(zero-ablated - spliced) / (zero-ablated - clean). Source: SAELens' `ce_loss_score`."""
    ce_recovered_mean: float
    """The same against the mean activation, a harder baseline where the mean is most of the norm."""
    kl: float
    """KL(clean || spliced)."""
    explained_variance: float
    """1 - sum |x - out|^2 / sum |x - mean|^2."""
    l0: float


@dataclass(frozen=True, slots=True)
class DensityHistogram:
    """How many features are active how often, in equal steps of log10 of the share of tokens."""

    log10_edges: tuple[float, ...]
    """One more than there are counts."""
    counts: tuple[int, ...]
    """Features that are active at all."""


@dataclass(frozen=True, slots=True)
class FeatureMetrics:
    """How often features are active, over tokens that the run has seen."""

    tokens: int
    l0: float
    dead_fraction: float
    """Features never active on these tokens."""
    dense_fraction: float
    density: DensityHistogram


@dataclass(frozen=True, slots=True)
class Judged:
    """A dictionary to measure, with what is known of the activations at its hook point."""

    hook: str
    sae: SAE[Any]
    """In float32, on the model's device."""
    mean: Float[Tensor, " d_in"]
    sink_norm: float


@dataclass(slots=True)
class _Sums:
    tokens: int = 0
    targets: int = 0
    losses: dict[str, float] = field(default_factory=lambda: {"clean": 0.0, "spliced": 0.0, "mean": 0.0, "zero": 0.0})
    kl: float = 0.0
    error: float = 0.0
    spread: float = 0.0
    active: float = 0.0


@torch.inference_mode()
def evaluate_splices(
    lens: LensModel, judged: Sequence[Judged], batches: Iterable[WindowBatch], max_tokens: int, observer: Observer
) -> list[SpliceMetrics]:
    """Compare the model with itself: as it is, with each reconstruction, with the mean and with zero in its place.

    Raises:
        CorpusError: the held-out documents have no token to measure on.
        StoppedError: the observer asked for it; measuring begins anew the next time.
    """
    sums = [_Sums() for _ in judged]
    num_tokens = 0
    with observer.stage("Measuring on held-out text", max_tokens) as progress:
        for batch in batches:
            _add(sums, lens, judged, batch)
            num_tokens = min(one.tokens for one in sums)
            progress.update(min(num_tokens, max_tokens))
            if num_tokens >= max_tokens:
                break
            if observer.should_stop():
                raise StoppedError("Stopped while measuring on held-out text, which begins anew the next time.")
    return [_means(one) for one in sums]


def _means(sums: _Sums) -> SpliceMetrics:
    if sums.targets == 0 or sums.tokens == 0:
        message = "The held-out documents have no token to measure on; the corpus needs more text."
        raise CorpusError(message, param="corpus")
    loss = {arm: total / sums.targets for arm, total in sums.losses.items()}
    return SpliceMetrics(
        tokens=sums.tokens,
        ce_clean=loss["clean"],
        ce_spliced=loss["spliced"],
        ce_mean_ablated=loss["mean"],
        ce_zero_ablated=loss["zero"],
        ce_recovered=_recovered(loss["clean"], loss["spliced"], loss["zero"]),
        ce_recovered_mean=_recovered(loss["clean"], loss["spliced"], loss["mean"]),
        kl=sums.kl / sums.targets,
        explained_variance=1 - sums.error / sums.spread if sums.spread else 0.0,
        l0=sums.active / sums.tokens,
    )


@torch.inference_mode()
def count_features(sae: SAE[Any], rows: Float[Tensor, "rows d_in"]) -> FeatureMetrics:
    """Count active features over `rows`, which should be `FEATURE_TOKENS` or more to tell which are dead."""
    fired = torch.zeros(sae.cfg.d_sae)
    for part in rows.split(_CHUNK):
        fired += sae.encode(part.to(sae.device)).bool().float().sum(0).cpu()
    density = fired / len(rows)
    return FeatureMetrics(
        tokens=len(rows),
        l0=float(density.sum()),
        dead_fraction=float((fired == 0).float().mean()),
        dense_fraction=float((density > DENSE_SHARE).float().mean()),
        density=_histogram(density[fired > 0]),
    )


def _histogram(density: Float[Tensor, " active"]) -> DensityHistogram:
    num_bins = -_LEAST_EXPONENT * _BINS_PER_DECADE
    edges = tuple(_LEAST_EXPONENT + place / _BINS_PER_DECADE for place in range(num_bins + 1))
    places = ((density.double().log10() - _LEAST_EXPONENT) * _BINS_PER_DECADE).floor().long().clamp(0, num_bins - 1)
    return DensityHistogram(edges, tuple(torch.bincount(places, minlength=num_bins).tolist()))


def _add(sums: Sequence[_Sums], lens: LensModel, judged: Sequence[Judged], batch: WindowBatch) -> None:
    ids = batch.ids.to(lens.device)
    targets = batch.wanted[:, 1:].to(lens.device)
    seen: dict[str, Tensor] = {}

    def keep_acts(acts: Tensor, hook: str) -> None:
        seen[hook] = acts.clone()  # some blocks add to it in place

    with contextlib.ExitStack() as stack:
        for hook in {one.hook for one in judged}:
            stack.enter_context(lens.hooked(hook, functools.partial(keep_acts, hook=hook)))
        clean = lens.forward(ids, use_cache=False).float().log_softmax(-1)
    ablated: dict[tuple[str, str], float] = {}
    for one, total in zip(judged, sums, strict=True):
        acts = seen[one.hook]
        keep = counted_tokens(acts, batch.wanted, one.sink_norm)
        x = acts[keep].float()
        feature_acts = one.sae.encode(x)
        out = one.sae.decode(feature_acts)
        mean = one.mean.to(lens.device)
        total.tokens += len(x)
        total.targets += int(targets.sum())
        total.error += float((x - out).pow(2).sum())
        total.spread += float((x - mean).pow(2).sum())
        total.active += float(feature_acts.bool().float().sum())
        total.losses["clean"] += _loss(clean, ids, targets)
        spliced = _replaced(lens, ids, one.hook, keep, out)
        total.losses["spliced"] += _loss(spliced, ids, targets)
        before = clean[:, :-1][targets]
        total.kl += float((before.exp() * (before - spliced[:, :-1][targets])).sum())
        for arm, value in (("mean", mean.expand_as(x)), ("zero", torch.zeros_like(x))):
            if (one.hook, arm) not in ablated:  # the same for all dictionaries at a hook point
                ablated[one.hook, arm] = _loss(_replaced(lens, ids, one.hook, keep, value), ids, targets)
            total.losses[arm] += ablated[one.hook, arm]


def _replaced(
    lens: LensModel, ids: Tensor, hook: str, keep: Bool[Tensor, "rows pos"], value: Float[Tensor, "kept d_in"]
) -> Float[Tensor, "rows pos vocab"]:
    """Return the log-probabilities with `value` in place of the kept tokens' activations."""

    def replace(acts: Tensor) -> Tensor:
        changed = acts.clone()
        changed[keep] = value.to(acts.dtype)
        return changed

    with lens.hooked(hook, replace):
        return lens.forward(ids, use_cache=False).float().log_softmax(-1)


def _loss(log_probs: Float[Tensor, "rows pos vocab"], ids: Tensor, targets: Bool[Tensor, "rows pos"]) -> float:
    """Return the summed loss of the tokens marked in `targets`, which is shifted by one: it has no first position."""
    chosen = log_probs[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    return -float(chosen[targets].sum())


def _recovered(clean: float, spliced: float, ablated: float) -> float:
    return (ablated - spliced) / (ablated - clean) if ablated != clean else 0.0
