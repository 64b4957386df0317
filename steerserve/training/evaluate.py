"""What a dictionary keeps of the model: its reconstruction in place of the residual stream, on text never trained on.

Special tokens and sinks stay as they are in every arm, as they do when serving.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from steerserve.core.errors import CorpusError
from steerserve.training.activations import keep_mask

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jaxtyping import Bool, Float
    from numpy.typing import NDArray
    from sae_lens import SAE
    from torch import Tensor

    from steerserve.model.lens import LensModel
    from steerserve.training.progress import Progress
    from steerserve.training.windows import WindowBatch

DENSE_SHARE = 0.1
"""A feature that is active on more tokens than this share is dense."""
_FEATURE_TOKENS = 200_000
_CHUNK = 8192


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
class FeatureMetrics:
    """How often features are active, over cached tokens."""

    tokens: int
    l0: float
    dead_fraction: float
    """Features never active on these tokens."""
    dense_fraction: float


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
def evaluate_splice(
    lens: LensModel,
    hook: str,
    sae: SAE[Any],
    batches: Iterable[WindowBatch],
    mean: Float[Tensor, " d_model"],
    sink_norm: float,
    max_tokens: int,
    progress: Progress,
) -> SpliceMetrics:
    """Compare the model with itself under four arms: as it is, reconstructed, mean-ablated, zero-ablated.

    Raises:
        CorpusError: the held-out documents have no token to measure on.
    """
    sums = _Sums()
    mean = mean.to(lens.device)
    for batch in batches:
        _add(sums, lens, hook, sae, batch, mean, sink_norm)
        progress.update(min(sums.tokens, max_tokens))
        if sums.tokens >= max_tokens:
            break
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
def count_features(sae: SAE[Any], rows: NDArray[Any]) -> FeatureMetrics:
    """Count active features over up to 200,000 rows, spread evenly over `rows [num_rows, d_in]`."""
    stride = max(1, len(rows) // _FEATURE_TOKENS)
    chosen = rows[::stride][:_FEATURE_TOKENS]
    fired = torch.zeros(sae.cfg.d_sae)
    for start in range(0, len(chosen), _CHUNK):
        acts = sae.encode(torch.from_numpy(chosen[start : start + _CHUNK].astype("float32")).to(sae.device))
        fired += (acts > 0).float().sum(0).cpu()
    density = fired / len(chosen)
    return FeatureMetrics(
        tokens=len(chosen),
        l0=float(density.sum()),
        dead_fraction=float((fired == 0).float().mean()),
        dense_fraction=float((density > DENSE_SHARE).float().mean()),
    )


def _add(
    sums: _Sums, lens: LensModel, hook: str, sae: SAE[Any], batch: WindowBatch, mean: Tensor, sink_norm: float
) -> None:
    ids = batch.ids.to(lens.device)
    seen: list[Tensor] = []
    with lens.hooked(hook, seen.append):
        clean = lens.forward(ids, use_cache=False).float().log_softmax(-1)
    resid = seen[0]
    keep = keep_mask(resid, batch.wanted, sink_norm)
    x = resid[keep].float()
    acts = sae.encode(x)
    out = sae.decode(acts)
    targets = batch.wanted[:, 1:].to(lens.device)
    sums.tokens += len(x)
    sums.targets += int(targets.sum())
    sums.error += float((x - out).pow(2).sum())
    sums.spread += float((x - mean).pow(2).sum())
    sums.active += float((acts > 0).float().sum())
    sums.losses["clean"] += _loss(clean, ids, targets)
    for arm, value in (("spliced", out), ("mean", mean.expand_as(x)), ("zero", torch.zeros_like(x))):
        with lens.hooked(hook, lambda resid, value=value: _replace(resid, keep, value)):  # type: ignore[misc]
            logits = lens.forward(ids, use_cache=False).float().log_softmax(-1)
        sums.losses[arm] += _loss(logits, ids, targets)
        if arm == "spliced":
            before = clean[:, :-1][targets]
            sums.kl += float((before.exp() * (before - logits[:, :-1][targets])).sum())


def _replace(resid: Tensor, keep: Bool[Tensor, "rows pos"], value: Float[Tensor, "kept d_model"]) -> Tensor:
    changed = resid.clone()
    changed[keep] = value.to(resid.dtype)
    return changed


def _loss(log_probs: Float[Tensor, "rows pos vocab"], ids: Tensor, targets: Bool[Tensor, "rows pos"]) -> float:
    """Return the summed loss of the tokens marked in `targets`, which is shifted by one: it has no first position."""
    chosen = log_probs[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    return -float(chosen[targets].sum())


def _recovered(clean: float, spliced: float, ablated: float) -> float:
    return (ablated - spliced) / (ablated - clean) if ablated != clean else 0.0
