"""The training loop: SAELens' own trainer, step by step, over cached activations; it goes on after a kill.

Not `SAETrainer.fit`: that has its own bar and saves no checkpoint when it is interrupted.
"""

from __future__ import annotations

import logging
import math
import shutil
from typing import TYPE_CHECKING, Any

import torch
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.constants import TRAINER_STATE_FILENAME
from sae_lens.training.sae_trainer import SAETrainer

if TYPE_CHECKING:
    from pathlib import Path

    from sae_lens.saes.sae import TrainingSAE, TrainStepOutput
    from torch import Tensor

    from steerserve.training.batches import BatchProvider
    from steerserve.training.options import TrainOptions
    from steerserve.training.progress import Progress

_SHOW_EVERY = 20
_DEAD_AFTER_TOKENS = 200_000
log = logging.getLogger(__name__)


def total_steps(options: TrainOptions, provider: BatchProvider) -> int:
    """Return the number of steps of the whole run."""
    return options.epochs * provider.batches_per_epoch


def train_sae(
    sae: TrainingSAE[Any],
    provider: BatchProvider,
    options: TrainOptions,
    scaling_factor: float,
    progress: Progress,
) -> TrainingSAE[Any]:
    """Train `sae` in place to the end, from the last checkpoint in `options.run_dir` if there is one.

    After a kill or Ctrl-C, a second call ends with the weights of an undisturbed run, bit for bit on one machine:
    batches depend on the step number alone and no other noise is drawn. What was done since the last checkpoint is
    done again.
    """
    num_steps = total_steps(options, provider)
    trainer = _build_trainer(sae, provider, options, num_steps)
    trainer.activation_scaler.scaling_factor = scaling_factor
    folder = options.run_dir / "checkpoints"
    if saved := _checkpoints(folder):
        _load_checkpoint(trainer, saved[-1])
        log.info("going on after step %d", trainer.n_training_steps)
    try:
        while trainer.n_training_steps < num_steps:
            provider.position = trainer.n_training_steps
            output = trainer.step(next(provider))
            trainer.n_training_steps += 1
            if trainer.n_training_steps % _SHOW_EVERY == 0:
                progress.update(trainer.n_training_steps, **_facts(trainer, output))
            if trainer.n_training_steps % options.checkpoint_every == 0:
                _save_checkpoint(trainer, folder)
    except KeyboardInterrupt:
        # A step that was cut leaves weights and counters at odds, so only what was saved before it counts.
        log.warning(
            "interrupted after step %d; the same command goes on from the last checkpoint", trainer.n_training_steps
        )
        raise
    progress.update(num_steps)
    _save_checkpoint(trainer, folder)
    return sae


def _build_trainer(
    sae: TrainingSAE[Any], provider: BatchProvider, options: TrainOptions, num_steps: int
) -> SAETrainer[Any, Any]:
    batch_size = provider.batch_size
    config = SAETrainerConfig(
        total_training_samples=num_steps * batch_size,
        train_batch_size_samples=batch_size,
        lr=options.lr,
        lr_end=options.lr / 10,
        lr_scheduler_name="constant",
        lr_warm_up_steps=max(1, num_steps // 20),
        lr_decay_steps=max(1, num_steps // 5),
        device=str(sae.device),
        dead_feature_window=max(1, min(_DEAD_AFTER_TOKENS // batch_size, num_steps // 8)),
        logger=LoggingConfig(log_to_wandb=False),
    )
    return SAETrainer(cfg=config, sae=sae, data_provider=provider)


def _facts(trainer: SAETrainer[Any, Any], output: TrainStepOutput) -> dict[str, float]:
    return {
        "mse": float(output.losses["mse_loss"].detach()),
        "explained": _explained(output.sae_in, output.sae_out.detach()),
        "l0": float((output.feature_acts.detach() > 0).float().sum(-1).mean()),
        "dead": int(trainer.dead_neurons.sum()),
    }


def _explained(x: Tensor, out: Tensor) -> float:
    return 1 - float((x - out).pow(2).sum() / (x - x.mean(0)).pow(2).sum())


def _save_checkpoint(trainer: SAETrainer[Any, Any], folder: Path) -> None:
    """Write aside, move into place, drop older ones: a kill at any moment leaves at least one that is whole."""
    aside = folder / "unfinished"
    shutil.rmtree(aside, ignore_errors=True)
    trainer.save_checkpoint(aside.name, base_path=folder)
    place = folder / f"{trainer.n_training_steps:08d}"
    shutil.rmtree(place, ignore_errors=True)
    aside.rename(place)
    for older in _checkpoints(folder)[:-1]:
        shutil.rmtree(older)


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(child for child in folder.glob("*") if child.name.isdigit())


def _load_checkpoint(trainer: SAETrainer[Any, Any], folder: Path) -> None:
    # SAELens leaves `weights_only` to torch's default, which an environment variable can turn off. This refuses
    # anything but tensors and plain values before SAELens reads the file.
    torch.load(folder / TRAINER_STATE_FILENAME, map_location="cpu", weights_only=True)
    trainer.sae.load_weights_from_checkpoint(folder)
    trainer.load_trainer_state(folder)
    if not math.isfinite(float(trainer.sae.W_dec.detach().abs().sum())):
        message = f"the checkpoint in {folder} holds weights that are not finite"
        raise RuntimeError(message)
