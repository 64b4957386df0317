"""Batches from a buffer in memory that is refilled from the text during training, without a cache on disk.

Each round shuffles the whole buffer and serves half of it. A row that was served is replaced at once by the next row of
the text, which is not served before the next round shuffles it among the others.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
import torch

from steerserve.core.errors import CorpusError
from steerserve.core.files import read_json, write_json
from steerserve.core.observer import StoppedError
from steerserve.training.activations import ActivationProfile, ActivationStatistics, statistics

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from jaxtyping import Float
    from numpy.typing import NDArray
    from torch import Tensor

    from steerserve.core.observer import Observer
    from steerserve.training.activations import ActivationReader
    from steerserve.training.batches import Batch

_MIN_BATCHES = 4
"""Least size of the buffer, in batches: a smaller one would not mix the text."""
_STATE = "buffer.json"


class BufferedBatches:
    """Batches of a text that is read from its start again when it ends before the run does."""

    def __init__(
        self, open_text: Callable[[], ActivationReader], tokens: int, batch_size: int, *, num_bytes: int, seed: int
    ) -> None:
        """Serve `tokens` rows in batches, from a buffer of at most `num_bytes`.

        `open_text` returns a reader at the start of the text.
        """
        self.batch_size = min(batch_size, tokens)
        self.num_steps = tokens // self.batch_size
        self._open_text = open_text
        self._num_bytes = num_bytes
        self._seed = seed
        self._reader = open_text()
        self._rows: dict[str, NDArray[np.generic]] = {}
        self._spare: dict[str, NDArray[np.generic]] = {}
        """Rows that were read and are not in the buffer yet."""
        self._num_passes = 0
        """Number of times that the text was read to its end."""
        self._round: tuple[int, NDArray[np.int64]] | None = None
        self.statistics: dict[str, ActivationStatistics] = {}
        """Statistics of the rows that first filled the buffer, at each hook point."""
        self.num_tokens = 0
        """Number of different rows that were read from the text so far."""
        self.num_sinks = 0

    @property
    def profile(self) -> ActivationProfile:
        """The profile that was measured at the start of the text; only after `fill` or `load`."""
        if self._reader.profile is None:
            message = "the buffer has not been filled"
            raise RuntimeError(message)
        return self._reader.profile

    def fill(self, observer: Observer) -> None:
        """Fill the buffer for the first time.

        Raises:
            CorpusError: the text has no token to train on.
            StoppedError: the observer asked for it.
        """
        profile = self._reader.start()
        row_bytes = sum(profile.widths.values()) * np.dtype(profile.dtype).itemsize
        capacity = min(
            max(self._num_bytes // row_bytes, _MIN_BATCHES * self.batch_size), self.num_steps * self.batch_size
        )
        parts: list[Mapping[str, NDArray[np.generic]]] = []
        num_rows = 0
        with observer.stage("Filling the buffer", capacity) as progress:
            while num_rows < capacity and self._num_passes == 0:
                rows = self._read()
                if self._num_passes == 0:
                    parts.append(rows)
                    num_rows += _length(rows)
                    progress.update(min(num_rows, capacity))
                else:
                    self._spare = dict(rows)
                if observer.should_stop():
                    message = "Stopped before the first step. The same command starts again from the beginning."
                    raise StoppedError(message)
        joined = {hook: np.concatenate([rows[hook] for rows in parts]) for hook in profile.widths}
        # A text shorter than the buffer fills a part of it: with its rows repeated, a batch could have one twice.
        self._rows = {hook: rows[:capacity].copy() for hook, rows in joined.items()}
        self._spare = {
            hook: np.concatenate([rows[capacity:], self._spare.get(hook, rows[:0])]) for hook, rows in joined.items()
        }
        self.statistics = {hook: statistics(rows) for hook, rows in self._rows.items()}

    def batch(self, step: int) -> Batch:
        """Return the batch of a step, and replace its rows in the buffer by the next ones of the text."""
        batch_size = min(self.batch_size, _length(self._rows))
        per_round = max(1, _length(self._rows) // 2 // batch_size)
        number, index = divmod(step, per_round)
        if self._round is None or self._round[0] != number:
            order = np.random.default_rng([self._seed, number]).permutation(_length(self._rows))
            self._round = (number, order)
        chosen = self._round[1][index * batch_size : (index + 1) * batch_size]
        batch = {hook: torch.from_numpy(rows[chosen].astype(np.float32)) for hook, rows in self._rows.items()}
        for hook, rows in self._take(batch_size).items():
            self._rows[hook][chosen] = rows
        return batch

    def sample(self, hook: str, num_rows: int, seed: int) -> Float[Tensor, "rows d_in"]:
        """Return up to `num_rows` rows, drawn from the buffer."""
        rows = self._rows[hook]
        chosen = np.random.default_rng([self._seed, seed, 1]).choice(len(rows), min(num_rows, len(rows)), replace=False)
        return torch.from_numpy(rows[chosen].astype(np.float32))

    def save(self, folder: Path) -> None:
        """Write the buffer, and how much of the text has been read."""
        folder.mkdir(parents=True, exist_ok=True)
        for hook, rows in self._rows.items():
            np.save(folder / f"{hook}.npy", rows, allow_pickle=False)
            np.save(folder / f"{hook}.spare.npy", self._spare[hook], allow_pickle=False)
            np.save(folder / f"{hook}.mean.npy", self.statistics[hook].mean.numpy(), allow_pickle=False)
        write_json(
            folder / _STATE,
            {
                **asdict(self.profile),
                "norms": {hook: [values.median_norm, values.mean_norm] for hook, values in self.statistics.items()},
                "num_batches": self._reader.num_batches,
                "num_passes": self._num_passes,
                "num_tokens": self.num_tokens,
                "num_sinks": self.num_sinks,
            },
        )

    def load(self, folder: Path) -> None:
        """Restore the state that `save` wrote."""
        state = read_json(folder / _STATE)
        profile = ActivationProfile(state["sink_norms"], state["widths"], state["dtype"])
        self._reader.resume(profile, state["num_batches"])
        self._num_passes, self.num_tokens = state["num_passes"], state["num_tokens"]
        self.num_sinks = state["num_sinks"]
        for hook in profile.widths:
            self._rows[hook] = np.load(folder / f"{hook}.npy", allow_pickle=False)
            self._spare[hook] = np.load(folder / f"{hook}.spare.npy", allow_pickle=False)
            median, mean_norm = state["norms"][hook]
            mean = torch.from_numpy(np.load(folder / f"{hook}.mean.npy", allow_pickle=False))
            self.statistics[hook] = ActivationStatistics(median, mean_norm, mean)

    def _take(self, num_rows: int) -> dict[str, NDArray[np.generic]]:
        """Return the next rows of the text."""
        parts = [self._spare]
        length = _length(self._spare)
        while length < num_rows:
            parts.append(self._read())
            length += _length(parts[-1])
        joined = {hook: np.concatenate([part[hook] for part in parts]) for hook in self._spare}
        self._spare = {hook: rows[num_rows:].copy() for hook, rows in joined.items()}
        return {hook: rows[:num_rows] for hook, rows in joined.items()}

    def _read(self) -> dict[str, NDArray[np.generic]]:
        """Return the rows of the next batch of text; after the last one, of the first again."""
        for _ in range(2):
            while True:
                before = self._reader.num_sinks
                rows = self._reader.read()
                if rows is None:
                    break
                if self._num_passes == 0:
                    self.num_tokens += _length(rows)
                    self.num_sinks += self._reader.num_sinks - before
                if _length(rows):
                    return rows
            profile = self.profile
            self._reader = self._open_text()
            self._reader.resume(profile, 0)
            self._num_passes += 1
        message = "The corpus has no token to train on: all are special tokens or attention sinks. Give another text."
        raise CorpusError(message, param="corpus")


def _length(rows: Mapping[str, NDArray[np.generic]]) -> int:
    return len(next(iter(rows.values()), ()))
