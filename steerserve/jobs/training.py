"""Training on text from anywhere: what must be fetched or written first, and then the run."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from steerserve.core.errors import ConfigError
from steerserve.core.lock import FileLock
from steerserve.jobs.corpus import local_corpus
from steerserve.training.run import finished, train

if TYPE_CHECKING:
    from pathlib import Path

    from steerserve.core.observer import Observer
    from steerserve.training.options import TrainOptions


def train_from_anywhere(options: TrainOptions, observer: Observer) -> tuple[Path, ...]:
    """Make the corpus local and train; return the dictionaries' folders. Goes on where an earlier call was stopped.

    Raises:
        ConfigError: another process trains in the same folder, or it cannot be written.
        SteerserveError: as `steerserve.training.run.train`.
    """
    if done := finished(options):
        return done
    with FileLock(options.run_dir / "lock") as lock:
        try:
            options.run_dir.mkdir(parents=True, exist_ok=True)
            is_alone = lock.acquire()
        except OSError as error:
            message = f"{options.out} cannot be written: {error.strerror}."
            raise ConfigError(message, param="out") from error
        if not is_alone:
            # Two would write one checkpoint.
            message = f"Another process trains in {options.out} now. Wait for its end, or give another folder."
            raise ConfigError(message, param="out")
        return train(replace(options, prepared=local_corpus(options, observer)), observer)
