"""Interpreting with text from anywhere: what must be fetched or written first, and then the run."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from steerserve.core.errors import ConfigError
from steerserve.core.lock import FileLock
from steerserve.interpret.interpret import interpret
from steerserve.jobs.corpus import local_corpus

if TYPE_CHECKING:
    from steerserve.core.observer import Observer
    from steerserve.interpret.interpret import Interpreted
    from steerserve.interpret.options import InterpretOptions


def interpret_from_anywhere(options: InterpretOptions, observer: Observer) -> tuple[Interpreted, ...]:
    """Make the corpus local and interpret the dictionaries. Goes on where an earlier call was stopped.

    Raises:
        ConfigError: another process does the same, or the folder for what is unfinished cannot be written.
        SteerserveError: as `steerserve.interpret.interpret.interpret`.
    """
    folder = options.run_dir.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(options.run_dir.with_suffix(".lock")) as lock:
            if not lock.acquire():
                names = ", ".join(one.id for one in options.dictionaries)
                message = f"Another process interprets {names} at this moment."
                raise ConfigError(message, param="dictionaries")
            prepared = local_corpus(options, observer)
            return interpret(replace(options, prepared=prepared), observer)
    except OSError as error:
        message = f"{folder} cannot be written: {error.strerror}."
        raise ConfigError(message, param="dictionary_dirs") from error
