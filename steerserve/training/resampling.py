"""Dead features begun anew, aimed at what the dictionary reconstructs worst.

Source: Bricken et al. 2023, "Towards Monosemanticity", appendix on neuron resampling; SAELens 6 has none.
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
"""Inputs whose losses decide where dead features go."""
_ENCODER_SHARE = 0.2
"""Length of a new encoder column, as a share of the mean length of those alive: it must win its place."""
_CHUNK = 4096
_KEPT = frozenset({"b_dec", "threshold"})
"""Parameters without features, and the threshold, which says when a feature fires and not where it points."""


@torch.no_grad()
def resample_dead(trainer: SAETrainer[Any, Any], sample: Float[Tensor, "rows d_in"], seed: int) -> int:
    """Give each dead feature of a dictionary under training a new direction; return how many there were.

    A feature is dead where it has not fired within the trainer's window. Each gets an input drawn with a probability
    proportional to the square of its loss, less `b_dec` and normalised, as its decoder row and (at a fifth of the usual
    length) its encoder column; its biases become 0 and the optimizer forgets it.

    Args:
        trainer: Between two steps.
        sample: Activations as they come from the model, unscaled.
        seed: Decides the draw.
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
        usual = norms[~dead].mean() if num_dead < len(norms) else norms.mean()
        values["W_enc"] = (_ENCODER_SHARE * usual * directions).T
    for name, parameter in parameters.items():
        if name in _KEPT:
            continue
        place = _place(name, dead)
        parameter[place] = values.get(name, 0.0)
        for moment in ("exp_avg", "exp_avg_sq"):
            if moment in trainer.optimizer.state[parameter]:
                trainer.optimizer.state[parameter][moment][place] = 0.0
    trainer.n_forward_passes_since_fired[dead] = 0
    return num_dead


def _losses(sae: TrainingSAE[Any], inputs: Tensor) -> Float[Tensor, " rows"]:
    parts = [(sae.decode(sae.encode(part)) - part).pow(2).sum(-1) for part in inputs.split(_CHUNK)]
    return torch.cat(parts)


def _place(name: str, dead: Tensor) -> tuple[Any, ...]:
    """Return the index of the dead features' values in a parameter."""
    return (slice(None), dead) if name == "W_enc" else (dead,)
