"""Training on text from anywhere: what must be fetched or written first, and then the run."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from steerserve.jobs.corpus import prepare
from steerserve.training.run import finished, train

if TYPE_CHECKING:
    from pathlib import Path

    from steerserve.training.observer import Observer
    from steerserve.training.options import TrainOptions


def train_from_anywhere(options: TrainOptions, observer: Observer) -> tuple[Path, ...]:
    """Make the corpus local and train; return the dictionaries' folders. Goes on where an earlier call was stopped.

    Raises:
        SteerserveError: as `steerserve.training.run.train`.
    """
    if done := finished(options):
        return done
    prepared = prepare(options, observer).corpus
    return train(replace(options, prepared=tuple(prepared)), observer)
