"""Who follows a run: is told how far it is, and may ask it to stop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from steerserve.core.errors import SteerserveError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager


class StoppedError(SteerserveError):
    """The run was asked to stop; its checkpoint is saved and the same call goes on from there."""


class Progress(Protocol):
    """What one stage of a run tells while it works."""

    def update(self, done: int, facts: Mapping[str, Any] | None = None) -> None:
        """Say how much is done, with numbers worth seeing (JSON values).

        While a stage trains: `step`, `tokens`, `losses`, `explained_variance`, `l0`, `dead_fraction` and `resampled`
        of each dictionary by its id, under `dictionaries`.
        """


class Observer(Protocol):
    """Follows a whole run."""

    def stage(self, title: str, total: int) -> AbstractContextManager[Progress]:
        """Follow one stage, of `total` tokens, steps or documents, while the context is open."""

    def should_stop(self) -> bool:
        """Tell whether the run is to save what it has and raise StoppedError; asked often."""
