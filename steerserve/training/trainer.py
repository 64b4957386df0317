"""The training loop: SAELens' trainers, step by step, over one stream of activations; a killed run can be resumed.

It does not call `SAETrainer.fit`, which shows a bar of its own, saves no checkpoint when it is interrupted and trains a
single dictionary.
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

from steerserve.core.errors import ConfigError
from steerserve.core.files import read_json, write_json
from steerserve.core.observer import StoppedError
from steerserve.training.history import History
from steerserve.training.resampling import SAMPLE_ROWS, resample_dead

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sae_lens.saes.sae import TrainingSAE, TrainStepOutput

    from steerserve.core.observer import Observer
    from steerserve.training.batches import Batches
    from steerserve.training.options import DictionaryOptions, TrainOptions

_SHOW_EVERY = 10
"""Steps between two reports of progress."""
_DEAD_AFTER_TOKENS = 200_000
"""Number of tokens after which a feature that was not active is dead."""
_WINDOWS_A_RUN = 8
"""In a short run a feature is dead if it was not active for one of this many equal parts of the run."""
_PROGRESS = "progress.json"
_DICTIONARIES = "dictionaries"
BATCHES_FOLDER = "batches"
"""Folder in a checkpoint for what `Batches.save` writes."""
log = logging.getLogger(__name__)


def train_saes(
    saes: Mapping[str, TrainingSAE[Any]],
    scaling_factors: Mapping[str, float],
    batches: Batches,
    options: TrainOptions,
    observer: Observer,
) -> dict[str, History]:
    """Train `saes` in place and return their curves; begin at the last checkpoint in `options.run_dir` if it has one.

    After a stop, a kill or Ctrl-C, a second call ends with the weights of an undisturbed run, bit for bit on one
    machine: batches depend on the step number alone and all other noise on the step and the seed. Steps since the last
    checkpoint are done again.

    Args:
        saes: Untrained dictionaries by their ids.
        scaling_factors: The factor by which each dictionary's activations are multiplied.
        batches: The activations.
        options: Options of the run; `saes` has each of its dictionaries.
        observer: Follows the run and can stop it between two steps.

    Raises:
        StoppedError: the observer asked for a stop; a checkpoint is saved.
    """
    run = _TrainingRun(saes, scaling_factors, batches, options)
    run.load_last()
    with observer.stage("Training", batches.num_steps) as progress:
        while run.step < batches.num_steps:
            run.do_step()
            if run.step % _SHOW_EVERY == 0 or run.step == batches.num_steps:
                progress.update(run.step, run.facts())
            is_stopping = observer.should_stop() and run.step < batches.num_steps
            if is_stopping or run.step % options.checkpoint_every == 0 or run.step == batches.num_steps:
                run.save()
            if is_stopping:
                message = f"Stopped after step {run.step} of {batches.num_steps}. The same command resumes there."
                raise StoppedError(message)
    return {name: dictionary.history for name, dictionary in run.dictionaries.items()}


class _TrainingRun:
    """All dictionaries of a run at one step."""

    def __init__(
        self,
        saes: Mapping[str, TrainingSAE[Any]],
        scaling_factors: Mapping[str, float],
        batches: Batches,
        options: TrainOptions,
    ) -> None:
        self.step = 0
        self.dictionaries = {
            dictionary.id: _TrainedDictionary(
                dictionary, saes[dictionary.id], scaling_factors[dictionary.id], batches, options.seed
            )
            for dictionary in options.dictionaries
        }
        self._batches = batches
        self._run_dir = options.run_dir

    def do_step(self) -> None:
        """Train every dictionary on the next batch, and resample those for which it is due."""
        batch = self._batches.batch(self.step)
        for dictionary in self.dictionaries.values():
            dictionary.do_step(batch[dictionary.options.hook])
        self.step += 1
        for dictionary in self.dictionaries.values():
            dictionary.resample_if_due(self.step, self._batches)
            dictionary.record(self.step, self._batches.num_steps)

    def facts(self) -> dict[str, Any]:
        """Return the facts for the observer."""
        facts = {name: dictionary.history.last for name, dictionary in self.dictionaries.items()}
        return {"step": self.step, "tokens": self.step * self._batches.batch_size, "dictionaries": facts}

    def save(self) -> None:
        """Write a checkpoint, rename it, remove older ones: a kill at any moment leaves at least one complete."""
        folder = _checkpoints_dir(self._run_dir)
        unfinished = folder / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        for name, dictionary in self.dictionaries.items():
            dictionary.trainer.save_checkpoint(name, base_path=unfinished / _DICTIONARIES)
        self._batches.save(unfinished / BATCHES_FOLDER)
        histories = {name: dictionary.history.as_json() for name, dictionary in self.dictionaries.items()}
        write_json(unfinished / _PROGRESS, {"step": self.step, "histories": histories})
        checkpoint = folder / f"{self.step:08d}"
        shutil.rmtree(checkpoint, ignore_errors=True)
        unfinished.rename(checkpoint)
        for older in _checkpoints(self._run_dir)[:-1]:
            shutil.rmtree(older)

    def load_last(self) -> None:
        """Load the last checkpoint, if the run has one."""
        if (folder := last_checkpoint(self._run_dir)) is None:
            return
        progress = read_json(folder / _PROGRESS)
        self.step = progress["step"]
        for name, dictionary in self.dictionaries.items():
            dictionary.load(folder / _DICTIONARIES / name, progress["histories"][name])
        log.info("resuming after step %d", self.step)


class _TrainedDictionary:
    """One dictionary in training."""

    def __init__(
        self, options: DictionaryOptions, sae: TrainingSAE[Any], scaling_factor: float, batches: Batches, seed: int
    ) -> None:
        self.options = options
        self.trainer = _build_trainer(sae, batches, options)
        self.trainer.activation_scaler.scaling_factor = scaling_factor
        self.history = History()
        self._resample_at = {max(1, round(share * batches.num_steps)) for share in options.resampling}
        self._seed = seed
        self._output: TrainStepOutput | None = None

    def do_step(self, batch: torch.Tensor) -> None:
        self._output = self.trainer.step(batch)
        self.trainer.n_training_steps += 1

    def resample_if_due(self, step: int, batches: Batches) -> None:
        if step in self._resample_at:
            sample = batches.sample(self.options.hook, SAMPLE_ROWS, step)
            self.history.add_resampled(step, resample_dead(self.trainer, sample, seed=self._seed + step))

    def record(self, step: int, num_steps: int) -> None:
        if self._output is not None and (step % _SHOW_EVERY == 0 or step == num_steps):
            self.history.add(step, _facts(self.trainer, self._output, self.history.num_resampled), num_steps)

    def load(self, folder: Path, history: Mapping[str, Any]) -> None:
        # SAELens leaves `weights_only` to torch's default, which an environment variable can turn off. This call
        # refuses everything but tensors and plain values before SAELens reads the file.
        torch.load(folder / TRAINER_STATE_FILENAME, map_location="cpu", weights_only=True)
        self.trainer.sae.load_weights_from_checkpoint(folder)
        self.trainer.load_trainer_state(folder)
        if not math.isfinite(float(self.trainer.sae.W_dec.detach().abs().sum())):
            message = f"the checkpoint in {folder} has weights that are not finite"
            raise RuntimeError(message)
        self.history = History.from_json(history)


def _build_trainer(sae: TrainingSAE[Any], batches: Batches, options: DictionaryOptions) -> SAETrainer[Any, Any]:
    batch_size, num_steps = batches.batch_size, batches.num_steps
    config = SAETrainerConfig(
        total_training_samples=num_steps * batch_size,
        train_batch_size_samples=batch_size,
        lr=options.lr,
        lr_end=options.lr / 10,
        lr_scheduler_name="constant",
        lr_warm_up_steps=max(1, num_steps // 20),
        lr_decay_steps=max(1, num_steps // 5),
        device=str(sae.device),
        dead_feature_window=max(1, min(_DEAD_AFTER_TOKENS // batch_size, num_steps // _WINDOWS_A_RUN)),
        logger=LoggingConfig(log_to_wandb=False),
    )
    return SAETrainer(cfg=config, sae=sae, data_provider=iter(()))


@torch.no_grad()
def _facts(trainer: SAETrainer[Any, Any], output: TrainStepOutput, num_resampled: int) -> dict[str, Any]:
    """Return a step's losses and measurements.

    Raises:
        ConfigError: the loss is not finite.
    """
    if not bool(torch.isfinite(output.loss)):
        message = (
            f"Training diverged: the loss after step {trainer.n_training_steps} is not finite. "
            "Give a smaller lr or l1_coefficient, or a larger batch_size."
        )
        raise ConfigError(message, param="lr")
    x, out = output.sae_in.float(), output.sae_out.float()
    spread = float((x - x.mean(0)).pow(2).sum())
    losses = {"overall": output.loss, **output.losses}
    return {
        "losses": {name: _number(value) for name, value in losses.items()},
        "explained_variance": 1 - float((x - out).pow(2).sum()) / spread if spread else 0.0,
        "l0": float(output.feature_acts.bool().float().sum(-1).mean()),
        "dead_fraction": float(trainer.dead_neurons.float().mean()),
        "resampled": num_resampled,
    }


def _number(value: Any) -> float:  # noqa: ANN401 a tensor, a number, or a function that returns one
    return float(value() if callable(value) else value)


def last_checkpoint(run_dir: Path) -> Path | None:
    """Return the folder of a run's newest checkpoint; None if the run has no checkpoint."""
    return next(reversed(_checkpoints(run_dir)), None)


def _checkpoints(run_dir: Path) -> list[Path]:
    return sorted(child for child in _checkpoints_dir(run_dir).glob("*") if child.name.isdigit())


def _checkpoints_dir(run_dir: Path) -> Path:
    return run_dir / "checkpoints"
