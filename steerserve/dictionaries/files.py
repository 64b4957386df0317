"""The files of one dictionary, read within limits: no file stays mapped, no link leads out of the allowed folders.

Knows files and folders, not the meaning of their content.
"""

from __future__ import annotations

import contextlib
import math
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jiter

from steerserve.core.errors import DictionarySourceError
from steerserve.core.files import opened_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from io import BufferedReader
    from pathlib import Path

MAX_JSON_BYTES = 1 << 20
"""Largest configuration or report; real ones have a few kilobytes."""
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
"""Opening never waits for the writer of a named pipe, and fails if the resolved path has become a link."""


@dataclass(frozen=True, slots=True)
class SourceFolder:
    """A folder with a dictionary in it."""

    path: Path
    source: str
    """The source as the request wrote it."""
    name: str
    """Name of the folder at its source, which may differ from the name of `path`."""
    roots: tuple[Path, ...] | None = None
    """Folders that each file must lie within, links followed. None for folders of ours and of the hub's client."""

    def names(self) -> frozenset[str]:
        """Return the names of its files.

        Raises:
            DictionarySourceError: the folder cannot be read.
        """
        try:
            return frozenset(path.name for path in self.path.iterdir())
        except OSError as error:
            raise refusal(self.source, f"has a folder that cannot be read: {error}") from error

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[tuple[BufferedReader, int]]:
        """Open a file; yield it and its size.

        Raises:
            DictionarySourceError: the file does not exist, is not a regular file, or lies outside the allowed folders.
        """
        path = self._resolved(name)
        try:
            with contextlib.ExitStack() as stack:
                descriptor = os.open(path, _FLAGS)
                stack.callback(os.close, descriptor)
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    raise self.refused(name, "is not a regular file")
                # A folder on the way may have become a link since the path was resolved.
                real = opened_path(descriptor)
                if self.roots is not None and real is not None and not is_within(real, self.roots):
                    raise self.refused(name, f"leads to {real}, outside the configured folders")
                yield stack.enter_context(open(descriptor, "rb", closefd=False)), status.st_size
        except FileNotFoundError as error:
            raise refusal(self.source, f"has no {name}") from error
        except OSError as error:
            raise self.refused(name, f"cannot be read: {error.strerror}") from error

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON object.

        Raises:
            DictionarySourceError: the file does not exist, is too large, or holds something else.
        """
        with self.opened(name) as (file, size):
            content = file.read(MAX_JSON_BYTES + 1)
        if max(size, len(content)) > MAX_JSON_BYTES:
            raise self.refused(name, f"has {size} bytes, and at most {MAX_JSON_BYTES} are read")
        try:
            value = jiter.from_json(content, allow_inf_nan=False, catch_duplicate_keys=True)
        except ValueError as error:
            raise self.refused(name, f"cannot be read as JSON: {error}") from error
        if not isinstance(value, dict):
            raise self.refused(name, "must hold a JSON object")
        if not _is_finite(value):
            raise self.refused(name, "holds a number that is not finite")
        return value

    def read_json_beside(self, name: str) -> dict[str, Any]:
        """Read a JSON object from the parent folder; empty if the file does not exist or must not be read."""
        outer = self.path.parent
        if self.roots is not None and not is_within(outer, self.roots):
            return {}
        folder = SourceFolder(outer, self.source, outer.name, self.roots)
        return folder.read_json(name) if (outer / name).is_file() else {}

    def refused(self, name: str, reason: str) -> DictionarySourceError:
        """Return the error about a file; `reason` continues the sentence after the file's name and the source."""
        return DictionarySourceError(f"{name} of the dictionary source {self.source!r} {reason}.")

    def _resolved(self, name: str) -> Path:
        try:
            path = (self.path / name).resolve()
        except (OSError, RuntimeError) as error:  # a loop of links is a RuntimeError
            raise self.refused(name, f"cannot be found: {error}") from error
        if self.roots is not None and not is_within(path, self.roots):
            raise self.refused(name, f"leads to {path}, outside the configured folders")
        return path


def refusal(source: str, reason: str) -> DictionarySourceError:
    """Return the error about a source; `reason` continues the sentence after the source."""
    return DictionarySourceError(f"The dictionary source {source!r} {reason}.")


def is_within(path: Path, roots: Sequence[Path]) -> bool:
    """Tell whether a resolved path is one of the folders or lies below one."""
    return any(path.is_relative_to(root) for root in roots)


def _is_finite(value: object) -> bool:
    # The parser refuses NaN and Infinity, but reads 1e999 as infinity.
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)
