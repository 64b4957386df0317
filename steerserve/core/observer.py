"""Observers follow a run: they get its progress and can stop it. `core.terminal` and `jobs.observer` have others."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Protocol, Self

from steerserve.core.errors import SteerserveError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager


class StoppedError(SteerserveError):
    """The observer stopped the run; its checkpoint is saved, and the same call resumes it."""


class Progress(Protocol):
    """Follows one stage of a run."""

    def update(self, done: int, facts: Mapping[str, Any] | None = None) -> None:
        """Report the number of units that are done, and facts about the run (JSON values).

        A stage that trains gives `step`, `tokens`, and under `dictionaries`, for each dictionary by its id, `losses`,
        `explained_variance`, `l0`, `dead_fraction` and `resampled`.
        """


class Observer(Protocol):
    """Follows a whole run."""

    def stage(self, title: str, total: int) -> AbstractContextManager[Progress]:
        """Follow one stage of `total` tokens, steps or documents while the context is open."""

    def should_stop(self) -> bool:
        """Tell whether the run must save its state and raise StoppedError; runs call it often."""


class SilentObserver:
    """Follows a run without showing it, and never stops it."""

    @contextlib.contextmanager
    def stage(self, title: str, total: int) -> Iterator[Self]:
        """Return itself as the stage's progress."""
        del title, total
        yield self

    def update(self, done: int, facts: Mapping[str, Any] | None = None) -> None:
        """Show nothing."""

    def should_stop(self) -> bool:
        """Return False."""
        return False
