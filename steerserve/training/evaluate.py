"""How much of the model a dictionary keeps: its reconstruction replaces the activations, on held-out text.

Special tokens and sinks are not replaced, as a server does not edit them.
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
from steerserve.text.windows import batch_documents

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from jaxtyping import Bool, Float, Int
    from sae_lens import SAE
    from torch import Tensor

    from steerserve.core.observer import Observer
    from steerserve.model.lens import LensModel
    from steerserve.text.corpus import StoredDocument
    from steerserve.text.windows import WindowBatch

DENSE_SHARE = 0.1
"""A feature that is active on a larger share of the tokens is dense."""
FEATURE_TOKENS = 200_000
"""Number of tokens on which active features are counted; a feature that is active on none of them is dead."""
_BATCH_TOKENS = 512
"""Tokens in a batch: fewer than in training, since several sets of logits over the vocabulary are in memory."""
_CHUNK = 8192
_BINS_PER_DECADE = 4
_LEAST_EXPONENT = -6


@dataclass(frozen=True, slots=True)
class SpliceMetrics:
    """Means over held-out tokens; losses and divergence in nats."""

    tokens: int
    ce_clean: float
    """Cross-entropy of the unchanged model."""
    ce_spliced: float
    """Cross-entropy with the reconstruction."""
    ce_mean_ablated: float
    """Cross-entropy with the mean activation."""
    ce_zero_ablated: float
    """Cross-entropy with zeros."""
    ce_recovered: float
    """(zero-ablated - spliced) / (zero-ablated - clean). Source: SAELens' `ce_loss_score`."""
    ce_recovered_mean: float
    """(mean-ablated - spliced) / (mean-ablated - clean), a harder baseline if the mean is most of the norm."""
    kl: float
    """KL(clean || spliced)."""
    explained_variance: float
    """1 - sum |x - out|^2 / sum |x - mean|^2."""
    l0: float
    """Mean number of active features."""


@dataclass(frozen=True, slots=True)
class DensityHistogram:
    """Number of features by the share of tokens on which they are active, in equal steps of its log10."""

    log10_edges: tuple[float, ...]
    """Edges of the bins: one more than bins."""
    counts: tuple[int, ...]
    """Number of features in each bin; features that are never active are in none."""


@dataclass(frozen=True, slots=True)
class FeatureMetrics:
    """How often features are active on tokens of the text that the dictionary was trained on."""

    tokens: int
    l0: float
    """Mean number of active features."""
    dead_fraction: float
    """Share of features that are active on none of these tokens."""
    dense_fraction: float
    """Share of features that are active on more than `DENSE_SHARE` of them."""
    density: DensityHistogram


@dataclass(frozen=True, slots=True)
class JudgedDictionary:
    """A dictionary to measure, with statistics of the activations at its hook point."""

    hook: str
    sae: SAE[Any]
    """The dictionary in float32, on the model's device."""
    mean: Float[Tensor, " d_in"]
    """Mean of the activations."""
    sink_norm: float
    """Norm above which a token is a sink."""


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
    lens: LensModel,
    judged: Sequence[JudgedDictionary],
    heldout: Iterable[StoredDocument],
    context_size: int,
    max_tokens: int,
    observer: Observer,
) -> list[SpliceMetrics]:
    """Compare the unchanged model with each reconstruction, with the mean and with zeros in place of the activations.

    Raises:
        CorpusError: the held-out documents have no token to measure on.
        StoppedError: the observer asked for a stop; the next call measures from the start.
    """
    sums = [_Sums() for _ in judged]
    with observer.stage("Measuring on held-out text", max_tokens) as progress:
        for batch in batch_documents(lens.tokenizer, heldout, context_size, _BATCH_TOKENS):
            _add(sums, lens, judged, batch)
            num_tokens = min(dictionary_sums.tokens for dictionary_sums in sums)
            progress.update(min(num_tokens, max_tokens))
            if num_tokens >= max_tokens:
                break
            if observer.should_stop():
                message = "Stopped while measuring on held-out text. The same command measures again from the start."
                raise StoppedError(message)
    return [_means(dictionary_sums) for dictionary_sums in sums]


def _means(sums: _Sums) -> SpliceMetrics:
    if sums.targets == 0 or sums.tokens == 0:
        message = "The held-out documents have no token to measure on. Give a corpus with more text."
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
    """Count on how many of `rows` each feature is active; with fewer than `FEATURE_TOKENS`, rare features seem dead."""
    num_active = torch.zeros(sae.cfg.d_sae)
    for part in rows.split(_CHUNK):
        num_active += sae.encode(part.to(sae.device)).bool().float().sum(0).cpu()
    density = num_active / len(rows)
    return FeatureMetrics(
        tokens=len(rows),
        l0=float(density.sum()),
        dead_fraction=float((num_active == 0).float().mean()),
        dense_fraction=float((density > DENSE_SHARE).float().mean()),
        density=_histogram(density[num_active > 0]),
    )


def _histogram(density: Float[Tensor, " active"]) -> DensityHistogram:
    num_bins = -_LEAST_EXPONENT * _BINS_PER_DECADE
    edges = tuple(_LEAST_EXPONENT + index / _BINS_PER_DECADE for index in range(num_bins + 1))
    bins = ((density.double().log10() - _LEAST_EXPONENT) * _BINS_PER_DECADE).floor().long().clamp(0, num_bins - 1)
    return DensityHistogram(edges, tuple(torch.bincount(bins, minlength=num_bins).tolist()))


def _add(sums: Sequence[_Sums], lens: LensModel, judged: Sequence[JudgedDictionary], batch: WindowBatch) -> None:
    ids = batch.ids.to(lens.device)
    targets = batch.is_plain[:, 1:].to(lens.device)
    acts_at: dict[str, Tensor] = {}

    def keep_acts(acts: Tensor, hook: str) -> None:
        acts_at[hook] = acts.clone()  # some blocks add to it in place

    with contextlib.ExitStack() as stack:
        for hook in {dictionary.hook for dictionary in judged}:
            stack.enter_context(lens.hooked(hook, functools.partial(keep_acts, hook=hook)))
        clean = lens.forward(ids, use_cache=False).float().log_softmax(-1)
    ablated: dict[tuple[str, str], float] = {}
    for dictionary, total in zip(judged, sums, strict=True):
        acts = acts_at[dictionary.hook]
        keep = counted_tokens(acts, batch.is_plain, dictionary.sink_norm)
        x = acts[keep].float()
        feature_acts = dictionary.sae.encode(x)
        out = dictionary.sae.decode(feature_acts)
        mean = dictionary.mean.to(lens.device)
        total.tokens += len(x)
        total.targets += int(targets.sum())
        total.error += float((x - out).pow(2).sum())
        total.spread += float((x - mean).pow(2).sum())
        total.active += float(feature_acts.bool().float().sum())
        total.losses["clean"] += _loss(clean, ids, targets)
        spliced = _replaced(lens, ids, dictionary.hook, keep, out)
        total.losses["spliced"] += _loss(spliced, ids, targets)
        before = clean[:, :-1][targets]
        total.kl += float((before.exp() * (before - spliced[:, :-1][targets])).sum())
        for arm, value in (("mean", mean.expand_as(x)), ("zero", torch.zeros_like(x))):
            if (dictionary.hook, arm) not in ablated:  # the same for all dictionaries at a hook point
                replaced = _replaced(lens, ids, dictionary.hook, keep, value)
                ablated[dictionary.hook, arm] = _loss(replaced, ids, targets)
            total.losses[arm] += ablated[dictionary.hook, arm]


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


def _loss(
    log_probs: Float[Tensor, "rows pos vocab"], ids: Int[Tensor, "rows pos"], targets: Bool[Tensor, "rows pos-1"]
) -> float:
    """Return the summed loss of the tokens marked in `targets`, which begins at the second position."""
    chosen = log_probs[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    return -float(chosen[targets].sum())


def _recovered(clean: float, spliced: float, ablated: float) -> float:
    return (ablated - spliced) / (ablated - clean) if ablated != clean else 0.0
