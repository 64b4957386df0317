"""Resampling of dead features: each gets the direction of an input that the dictionary reconstructs badly.

SAELens 6 has no resampling. Source: Bricken et al. 2023, "Towards Monosemanticity", appendix "Neuron Resampling".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from sae_lens.saes.sae import TrainingSAE
    from sae_lens.training.sae_trainer import SAETrainer
    from torch import Tensor

SAMPLE_ROWS = 32_768
"""Number of inputs that new directions are drawn from."""
_ENCODER_SHARE = 0.2
"""Length of a new encoder column, as a share of the mean length of those of live features."""
_CHUNK = 4096
_KEPT = frozenset({"b_dec", "threshold"})
"""Parameters that stay: `b_dec` belongs to no feature, and the threshold is not part of a direction."""


@torch.no_grad()
def resample_dead(trainer: SAETrainer[Any, Any], sample: Float[Tensor, "rows d_in"], seed: int) -> int:
    """Give each dead feature of a dictionary in training a new direction; return the number of dead features.

    A feature is dead if it was not active within the trainer's window. For each an input is drawn, with a probability
    proportional to the square of its loss. The normalised difference of that input and `b_dec` becomes the feature's
    decoder row and, at a fifth of the usual length, its encoder column. Its biases and its moments in the optimizer
    become 0.

    Args:
        trainer: The dictionary's trainer, between two steps.
        sample: Activations as they come from the model, unscaled.
        seed: Seed of the draw.
    """
    sae = trainer.sae
    dead: Bool[Tensor, " d_sae"] = trainer.dead_neurons
    num_dead = int(dead.sum())
    if num_dead == 0:
        return 0
    inputs = trainer.activation_scaler(sample.to(sae.device))
    losses = _losses(sae, inputs)
    generator = torch.Generator().manual_seed(seed)
    weights = losses.double().cpu().pow(2) + torch.finfo(torch.float64).tiny
    drawn = torch.multinomial(weights, num_dead, replacement=num_dead > len(weights), generator=generator)
    directions = torch.nn.functional.normalize(inputs[drawn.to(inputs.device)] - sae.b_dec, dim=-1)
    values = {"W_dec": directions}
    parameters = dict(sae.named_parameters())
    if "W_enc" in parameters:
        norms = sae.W_enc.norm(dim=0)
        mean_norm = norms[~dead].mean() if num_dead < len(norms) else norms.mean()
        values["W_enc"] = (_ENCODER_SHARE * mean_norm * directions).T
    for name, parameter in parameters.items():
        if name in _KEPT:
            continue
        # `W_enc` has a column a feature; the other parameters have a row or an element a feature.
        index = (slice(None), dead) if name == "W_enc" else (dead,)
        parameter[index] = values.get(name, 0.0)
        for moment in ("exp_avg", "exp_avg_sq"):
            if moment in trainer.optimizer.state[parameter]:
                trainer.optimizer.state[parameter][moment][index] = 0.0
    trainer.n_forward_passes_since_fired[dead] = 0
    return num_dead


def _losses(sae: TrainingSAE[Any], inputs: Tensor) -> Float[Tensor, " rows"]:
    parts = [(sae.decode(sae.encode(part)) - part).pow(2).sum(-1) for part in inputs.split(_CHUNK)]
    return torch.cat(parts)
