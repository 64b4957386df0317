"""One folder of preset files: a changed file is read again, and if it is broken its last good version stays in use."""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from steerserve.core.errors import PresetError
from steerserve.core.files import read_plain
from steerserve.presets.preset import MAX_FILE_BYTES, SUFFIX, Preset, decode_preset, parse_preset
from steerserve.presets.schema import NAME_RULE, PRESET_NAME

if TYPE_CHECKING:
    from pathlib import Path

_SETTLED_NS = 2_000_000_000
"""A file that changed more recently is read again even if its time stamp is the same: quick changes can share one."""
_MISNAMED = frozenset({".yml"})

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """The state of one preset file."""

    preset: Preset | None
    """The last version that could be used; None if there was no such version."""
    problem: str | None
    """Why the present file cannot be used, as `NAME.yaml:line:column: sentence`; None if it can."""
    text: str | None = None
    """The present text of the file; None if it may not or cannot be read."""


class _Stamp(NamedTuple):
    inode: int
    changed_ns: int
    modified_ns: int
    size: int


@dataclass(frozen=True, slots=True)
class _SeenFile:
    stamp: _Stamp | None
    is_settled: bool
    content: str
    """The file's text, or the message that says why it could not be read."""
    entry: Entry


class PresetFolder:
    """A folder whose files `NAME.yaml` are presets. Any thread."""

    def __init__(self, path: Path) -> None:
        """Read `path`, which need not exist."""
        self.path = path
        self._lock = threading.Lock()
        self._seen: dict[str, _SeenFile] = {}
        self._unreadable: str | None = None

    def scan(self) -> tuple[dict[str, Entry], str | None]:
        """Return the present state of each file by name, and why the folder itself cannot be read, if so."""
        with self._lock:
            try:
                files = self._files()
            except OSError as error:
                self._log_unreadable(f"The folder of presets cannot be read: {error.strerror}.")
                return {name: seen.entry for name, seen in self._seen.items()}, self._unreadable
            self._unreadable = None
            for name in self._seen.keys() - files.keys():
                _log.info("preset %s: its file was removed", name)
            self._seen = {name: self._checked(name, file) for name, file in sorted(files.items())}
            return {name: seen.entry for name, seen in self._seen.items()}, None

    def text(self, name: str) -> tuple[bool, str | None]:
        """Return whether a file of that name exists, and its text if it can be read; parses nothing."""
        file = self.path / f"{name}{SUFFIX}"
        if not re.fullmatch(PRESET_NAME, name) or not os.path.lexists(file):
            return False, None
        return True, self._read(name, file)[0]

    def _files(self) -> dict[str, Path]:
        try:
            files = [file for file in self.path.iterdir() if not file.name.startswith(".")]
        except FileNotFoundError:
            return {}
        presets = {file.stem: file for file in files if file.suffix == SUFFIX}
        return presets | {file.name: file for file in files if file.suffix in _MISNAMED}

    def _log_unreadable(self, message: str) -> None:
        if message != self._unreadable:
            _log.warning("%s: %s The presets that were read before stay in use.", self.path, message)
        self._unreadable = message

    def _checked(self, name: str, file: Path) -> _SeenFile:
        """Return the state of a file, which is read again if it may have changed."""
        seen = self._seen.get(name)
        stamp = _stamp(file)
        if seen is not None and seen.is_settled and seen.stamp == stamp is not None:
            return seen
        now = time.time_ns()
        is_settled = stamp is not None and max(stamp.changed_ns, stamp.modified_ns) + _SETTLED_NS < now
        text, content = self._read(name, file)
        if seen is not None and seen.content == content:
            return _SeenFile(stamp, is_settled, content, seen.entry)
        last = seen.entry.preset if seen is not None else None
        entry = _parsed(name, file, text) if text is not None else Entry(None, content)
        if entry.problem is not None:
            kept = " Its last good version stays in use." if last is not None else ""
            _log.warning("preset %s cannot be used: %s%s", name, self.path / entry.problem, kept)
            entry = Entry(last, entry.problem, text)
        elif seen is not None:
            _log.info("preset %s: its file has changed and was read again", name)
        return _SeenFile(stamp, is_settled, content, entry)

    def _read(self, name: str, file: Path) -> tuple[str | None, str]:
        """Return a file's text, and its content to compare: the text again, or why it cannot be read (with None)."""
        try:
            text = self._read_text(name, file)
        except PresetError as error:
            return None, error.message
        return text, text

    def _read_text(self, name: str, file: Path) -> str:
        """Return a file's text.

        Raises:
            PresetError: the file has no name for a preset, is a link out of the folder, or cannot be read.
        """
        where = f"{file.name}:1:1"
        if file.suffix != SUFFIX:
            raise PresetError(f"{where}: a preset's file ends in {SUFFIX}; rename it to {file.stem}{SUFFIX}.")
        if not re.fullmatch(PRESET_NAME, name):
            raise PresetError(f"{where}: {name!r} is not a name for a preset ({NAME_RULE}); rename the file.")
        try:
            # Kubernetes makes links within the folder; a link that leaves it could lead to any file.
            target = file.resolve(strict=True)
            if not target.is_relative_to(self.path.resolve()):
                raise PresetError(f"{where}: the file is a link that leaves the folder; put the file itself there.")
            data = read_plain(target, MAX_FILE_BYTES + 1)
        except (OSError, RuntimeError) as error:  # links in a circle are a RuntimeError before Python 3.13
            reason = error.strerror if isinstance(error, OSError) else "its links go in a circle"
            raise PresetError(f"{where}: the file cannot be read: {reason}.") from error
        return decode_preset(data, file=file.name)


def _parsed(name: str, file: Path, text: str) -> Entry:
    try:
        return Entry(parse_preset(text, file=file.name, name=name), None, text)
    except PresetError as error:
        return Entry(None, error.message, text)


def _stamp(file: Path) -> _Stamp | None:
    try:
        status = file.stat()
    except (OSError, RuntimeError):
        return None
    return _Stamp(status.st_ino, status.st_ctime_ns, status.st_mtime_ns, status.st_size)
