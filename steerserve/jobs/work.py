"""The work of each kind of job: make the text local, then train or interpret. The commands call it too."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from steerserve.core.errors import ConfigError
from steerserve.core.files import read_json
from steerserve.core.lock import FileLock
from steerserve.interpret.options import InterpretOptions
from steerserve.training.options import TrainOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from steerserve.core.literals import JobKind
    from steerserve.core.observer import Observer
    from steerserve.interpret.interpret import Interpreted
    from steerserve.jobs.job import JobSpec

    Work = Callable[[JobSpec, Observer], dict[str, Any]]
    """Takes a job's specification and an observer, returns the job's result; may raise any error."""


def prepare_and_train(options: TrainOptions, observer: Observer) -> tuple[Path, ...]:
    """Make the corpus local and train; return the dictionaries' folders. Continues an earlier call that was stopped.

    Raises:
        ConfigError: another process trains in the same folder, or the folder cannot be written.
        SteerserveError: as `steerserve.training.run.train`.
    """
    from steerserve.jobs.corpus import local_corpus  # noqa: PLC0415 loads torch, as the next one
    from steerserve.training.run import finished, train  # noqa: PLC0415

    if folders := finished(options):
        return folders
    with FileLock(options.run_dir / "lock") as lock:
        try:
            is_alone = _acquire(lock, options.run_dir)
        except OSError as error:
            message = f"{options.out} cannot be written: {error.strerror}."
            raise ConfigError(message, param="out") from error
        if not is_alone:
            message = f"Another process trains in {options.out}. Wait until it ends, or give another folder."
            raise ConfigError(message, param="out")
        return train(replace(options, prepared=local_corpus(options, observer)), observer)


def prepare_and_interpret(options: InterpretOptions, observer: Observer) -> tuple[Interpreted, ...]:
    """Make the corpus local and interpret the dictionaries. Continues an earlier call that was stopped.

    Raises:
        ConfigError: another process interprets the same dictionaries, or the folder of the run cannot be written.
        SteerserveError: as `steerserve.interpret.interpret.interpret`.
    """
    from steerserve.interpret.interpret import interpret  # noqa: PLC0415 loads torch, as the next one
    from steerserve.jobs.corpus import local_corpus  # noqa: PLC0415

    folder = options.run_dir.parent
    try:
        with FileLock(options.run_dir.with_suffix(".lock")) as lock:
            if not _acquire(lock, folder):
                names = ", ".join(dictionary.id for dictionary in options.dictionaries)
                message = f"Another process interprets {names}. Wait until it ends."
                raise ConfigError(message, param="dictionaries")
            return interpret(replace(options, prepared=local_corpus(options, observer)), observer)
    except OSError as error:
        message = f"{folder} cannot be written: {error.strerror}."
        raise ConfigError(message, param="dictionary_dirs") from error


def _acquire(lock: FileLock, folder: Path) -> bool:
    """Take the lock of a run in `folder`, which is made first: two processes would write one checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    return lock.acquire()


def _train(spec: JobSpec, observer: Observer) -> dict[str, Any]:
    options = TrainOptions.from_json(spec.options)
    _set_threads(spec)
    folders = prepare_and_train(options, observer)
    return {
        "dictionaries": [
            {"id": dictionary.id, "source": f"path:{folder}", "report": _report(folder)}
            for dictionary, folder in zip(options.dictionaries, folders, strict=True)
        ]
    }


def _interpret(spec: JobSpec, observer: Observer) -> dict[str, Any]:
    _set_threads(spec)
    interpreted = prepare_and_interpret(InterpretOptions.from_json(spec.options), observer)
    return {"dictionaries": [dictionary.as_json() for dictionary in interpreted]}


def _set_threads(spec: JobSpec) -> None:
    import torch  # noqa: PLC0415 loaded once the process has the least priority, since torch makes threads

    torch.set_num_threads(spec.threads)


def _report(folder: Path) -> dict[str, Any]:
    """Return a dictionary's report without the training curves: they are long, and the dictionary's folder has them."""
    return {name: value for name, value in read_json(folder / "report.json").items() if name != "history"}


WORK: Mapping[JobKind, Work] = {"train": _train, "interpret": _interpret}
"""The work of each kind of job. Continues where an earlier worker stopped; raises StoppedError once it has stopped."""
