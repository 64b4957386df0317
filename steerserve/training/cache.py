"""Activations of a whole text on disk: computed once, read in every epoch.

A stopped run leaves a prefix of the rows that an undisturbed run writes, and the next run appends the rest.
"""

from __future__ import annotations

import errno
import logging
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from steerserve.core.errors import ConfigError, CorpusError
from steerserve.core.files import read_json, write_json
from steerserve.core.observer import StoppedError
from steerserve.training.activations import ActivationProfile, CachedActivations

if TYPE_CHECKING:
    from pathlib import Path

    from steerserve.core.observer import Observer
    from steerserve.training.activations import ActivationReader

_SAVE_EVERY = 25
"""Batches between two saves."""
_CANNOT_ALLOCATE = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
"""Errors of file systems that cannot reserve blocks."""
_PROFILE = "calibration"
"""The key of the profile in `state.json`, by its first name, so that runs of older versions can be resumed."""
log = logging.getLogger(__name__)


def fill_cache(reader: ActivationReader, folder: Path, tokens: int, observer: Observer) -> CachedActivations:
    """Fill the cache in `folder` with `tokens` rows (fewer if the text ends before) and return it.

    Raises:
        ConfigError: the disk has no room for the rows.
        CorpusError: the text has no token to train on.
        StoppedError: the observer asked for a stop; the rows that were read are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state_file = folder / "state.json"
    if state_file.is_file():
        state = read_json(state_file)
        profile = ActivationProfile(**state[_PROFILE])
        if not state["is_full"]:
            reader.resume(profile, state["num_batches"])
        reader.num_sinks = state["num_sinks"]
    else:
        profile = reader.start()
        state = {"num_rows": 0, "is_full": False}
    num_rows = state["num_rows"]
    if not state["is_full"]:
        _allocate(folder, profile, tokens)
        cache = {hook: _open(folder, profile, hook, tokens) for hook in profile.widths}
        num_rows = _fill(reader, cache, num_rows, tokens, state_file, observer)
    if num_rows == 0:
        message = "The corpus has no token to train on: all are special tokens or attention sinks. Give another text."
        raise CorpusError(message, param="corpus")
    if num_rows < tokens:
        log.warning("the corpus has %d tokens to train on, fewer than the %d requested", num_rows, tokens)
    rows = {hook: _open(folder, profile, hook, tokens, "r")[:num_rows] for hook in profile.widths}
    return CachedActivations(rows, profile, reader.num_sinks)


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
            batch = reader.read()
            if batch is None:
                break
            num_new = min(len(next(iter(batch.values()))), tokens - num_rows)
            for hook, rows in batch.items():
                cache[hook][num_rows : num_rows + num_new] = rows[:num_new]
            num_rows += num_new
            progress.update(num_rows, {"sinks": reader.num_sinks})
            is_stopping = observer.should_stop()
            if is_stopping or reader.num_batches % _SAVE_EVERY == 0:
                save(is_full=False)
            if is_stopping:
                message = f"Stopped after reading {num_rows} tokens. The same command resumes there."
                raise StoppedError(message)
        save(is_full=True)
    return num_rows


def _save_state(state_file: Path, reader: ActivationReader, num_rows: int, *, is_full: bool) -> None:
    if reader.profile is None:
        return
    counts = {"num_rows": num_rows, "num_batches": reader.num_batches, "num_sinks": reader.num_sinks}
    write_json(state_file, {_PROFILE: asdict(reader.profile), **counts, "is_full": is_full})


def _allocate(folder: Path, profile: ActivationProfile, tokens: int) -> None:
    """Reserve the files' space now: writing a mapped file on a full disk ends the process with SIGBUS."""
    itemsize = np.dtype(profile.dtype).itemsize
    sizes = {folder / f"{hook}.bin": tokens * width * itemsize for hook, width in profile.widths.items()}
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
                f"The activations need {sum(sizes.values()) / 1e9:.2f} GB in {folder}, which cannot be reserved: "
                f"{error.strerror}. Free that much, give fewer tokens, or use the storage 'buffer'."
            )
            raise ConfigError(message, param="tokens") from error


def _open(folder: Path, profile: ActivationProfile, hook: str, tokens: int, mode: str = "r+") -> np.memmap[Any, Any]:
    file = folder / f"{hook}.bin"
    shape = (tokens, profile.widths[hook])
    opened: np.memmap[Any, Any] = np.memmap(file, profile.dtype, mode, shape=shape)  # type: ignore[call-overload]
    return opened
