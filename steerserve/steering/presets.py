"""Presets, as requests see them: sets of edits under names. No torch; not where they are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from steerserve.wire.edits import Edit


class PresetEdits(Protocol):
    """A named set of edits. Its contents never change."""

    @property
    def name(self) -> str:
        """What requests call it."""

    @property
    def edits(self) -> tuple[Edit, ...]:
        """What it does."""


class PresetLookup(Protocol):
    """Where presets are found."""

    def find(self, name: str) -> PresetEdits:
        """Return a preset as it is now. Not for an event loop: it may read files.

        Raises:
            NotFoundError: there is none of that name; the message says which is nearest.
            PresetError: its file cannot be used, and never could since this server runs.
        """
