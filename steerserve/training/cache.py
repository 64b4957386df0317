"""Activations of a whole text on disk: computed once, read as often as there are epochs.

A cache can be filled in several goes: what is on disk is always a prefix of what an undisturbed run would write.
"""

from __future__ import annotations

import errno
import logging
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from steerserve.core.errors import ConfigError, CorpusError
from steerserve.core.files import read_json, write_json
from steerserve.core.observer import StoppedError
from steerserve.training.activations import CachedActivations, Calibration

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from steerserve.core.observer import Observer
    from steerserve.training.activations import ActivationReader

_SAVE_EVERY = 25
_CANNOT_ALLOCATE = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
"""What file systems say that have no way to set blocks aside."""
log = logging.getLogger(__name__)


def fill_cache(reader: ActivationReader, folder: Path, tokens: int, observer: Observer) -> CachedActivations:
    """Fill the cache in `folder` up to `tokens` rows (fewer if the text ends) and return it.

    Raises:
        ConfigError: the disk has no room for it.
        CorpusError: the text has no token to train on.
        StoppedError: the observer asked for it; what was read is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state_file = folder / "state.json"
    if state_file.is_file():
        state = read_json(state_file)
        calibration = Calibration(**state["calibration"])
        if not state["is_full"]:
            reader.go_on(calibration, state["num_batches"])
        reader.num_sinks = state["num_sinks"]
    else:
        calibration = reader.start()
        state = {"num_rows": 0, "is_full": False}
    num_rows = state["num_rows"]
    if not state["is_full"]:
        _allocate(folder, calibration, calibration.widths, tokens)
        cache = {hook: _open(folder, calibration, hook, tokens) for hook in calibration.widths}
        num_rows = _fill(reader, cache, num_rows, tokens, state_file, observer)
    if num_rows == 0:
        message = "The corpus has no token to train on: all are special tokens or attention sinks."
        raise CorpusError(message, param="corpus")
    if num_rows < tokens:
        log.warning("the corpus gives %d tokens, fewer than the %d asked for", num_rows, tokens)
    rows = {hook: _open(folder, calibration, hook, tokens, "r")[:num_rows] for hook in calibration.widths}
    return CachedActivations(rows, calibration, reader.num_sinks)


def _fill(
    reader: ActivationReader,
    cache: dict[str, np.memmap[Any, Any]],
    num_rows: int,
    tokens: int,
    state_file: Path,
    observer: Observer,
) -> int:
    def save(*, is_full: bool) -> None:
        for rows in cache.values():
            rows.flush()
        _save_state(state_file, reader, num_rows, is_full=is_full)

    with observer.stage("Reading text", tokens) as progress:
        while num_rows < tokens:
            found = reader.read()
            if found is None:
                break
            num_new = min(len(next(iter(found.values()))), tokens - num_rows)
            for hook, rows in found.items():
                cache[hook][num_rows : num_rows + num_new] = rows[:num_new]
            num_rows += num_new
            progress.update(num_rows, {"sinks": reader.num_sinks})
            is_stopping = observer.should_stop()
            if is_stopping or reader.num_batches % _SAVE_EVERY == 0:
                save(is_full=False)
            if is_stopping:
                message = f"Stopped after reading {num_rows} tokens; the same command goes on from there."
                raise StoppedError(message)
        save(is_full=True)
    return num_rows


def _save_state(state_file: Path, reader: ActivationReader, num_rows: int, *, is_full: bool) -> None:
    if reader.calibration is None:
        return
    calibration = {
        "sink_norms": dict(reader.calibration.sink_norms),
        "widths": dict(reader.calibration.widths),
        "dtype": reader.calibration.dtype,
    }
    read = {"num_rows": num_rows, "num_batches": reader.num_batches, "num_sinks": reader.num_sinks}
    write_json(state_file, {"calibration": calibration, **read, "is_full": is_full})


def _allocate(folder: Path, calibration: Calibration, hooks: Iterable[str], tokens: int) -> None:
    """Take the files' room on the disk now: a mapped file that finds none later ends the process with SIGBUS."""
    itemsize = np.dtype(calibration.dtype).itemsize
    sizes = {folder / f"{hook}.bin": tokens * calibration.widths[hook] * itemsize for hook in hooks}
    for file, size in sizes.items():
        try:
            with file.open("ab") as opened:
                size_before = os.fstat(opened.fileno()).st_size
                try:
                    os.posix_fallocate(opened.fileno(), 0, size)
                except OSError as error:
                    is_full = error.errno not in _CANNOT_ALLOCATE
                    os.truncate(opened.fileno(), size_before if is_full else size)
                    if is_full:
                        raise
        except OSError as error:
            message = (
                f"The activations need {sum(sizes.values()) / 1e9:.2f} GB in {folder}, which cannot be had there: "
                f"{error.strerror}. Free some, give fewer tokens, or keep some in memory alone (storage 'buffer')."
            )
            raise ConfigError(message, param="tokens") from error


def _open(folder: Path, calibration: Calibration, hook: str, tokens: int, mode: str = "r+") -> np.memmap[Any, Any]:
    file = folder / f"{hook}.bin"
    shape = (tokens, calibration.widths[hook])
    opened: np.memmap[Any, Any] = np.memmap(file, calibration.dtype, mode, shape=shape)  # type: ignore[call-overload]
    return opened
