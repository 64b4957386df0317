"""One folder of preset files, read again where a file has changed; what a broken change had before is kept."""

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
"""A file that changed a shorter time ago is read again: its next change could fall into the same tick of the clock."""
_MISNAMED = frozenset({".yml"})

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of one file."""

    preset: Preset | None
    """As it was when it could last be used; None where it never could."""
    problem: str | None
    """Why the file cannot be used as it is now: its name without the folder, line, column and a sentence."""
    text: str | None = None
    """What is in the file now; None where it may not or cannot be read."""


class _Stamp(NamedTuple):
    inode: int
    changed_ns: int
    modified_ns: int
    size: int


@dataclass(frozen=True, slots=True)
class _Seen:
    stamp: _Stamp | None
    is_settled: bool
    content: str
    """The file's text, or why it could not be read."""
    entry: Entry


class PresetFolder:
    """A folder whose files `NAME.yaml` are presets. Any thread."""

    def __init__(self, path: Path) -> None:
        """Read `path`, which need not be there."""
        self.path = path
        self._lock = threading.Lock()
        self._seen: dict[str, _Seen] = {}
        self._unreadable: str | None = None

    def scan(self) -> tuple[dict[str, Entry], str | None]:
        """Return the files as they are now, by name, and why the folder itself cannot be read."""
        with self._lock:
            try:
                files = self._files()
            except OSError as error:
                self._tell_unreadable(f"The folder of presets cannot be read: {error.strerror}.")
                return {name: seen.entry for name, seen in self._seen.items()}, self._unreadable
            self._unreadable = None
            for name in self._seen.keys() - files.keys():
                _log.info("preset %s: its file is gone", name)
            self._seen = {name: self._look(name, file) for name, file in sorted(files.items())}
            return {name: seen.entry for name, seen in self._seen.items()}, None

    def text(self, name: str) -> tuple[bool, str | None]:
        """Return whether there is a file of that name, and its text where it can be read; parses nothing."""
        file = self.path / f"{name}{SUFFIX}"
        if not re.fullmatch(PRESET_NAME, name) or not os.path.lexists(file):
            return False, None
        return True, self._read(name, file)[0]

    def _files(self) -> dict[str, Path]:
        try:
            files = [file for file in self.path.iterdir() if not file.name.startswith(".")]
        except FileNotFoundError:
            return {}
        found = {file.stem: file for file in files if file.suffix == SUFFIX}
        misnamed = (file for file in files if file.suffix in _MISNAMED)
        return found | {file.name: file for file in misnamed}

    def _tell_unreadable(self, message: str) -> None:
        if message != self._unreadable:
            _log.warning("%s: %s Those that were read stay in use.", self.path, message)
        self._unreadable = message

    def _look(self, name: str, file: Path) -> _Seen:
        """Return what is known of a file, read again where it may have changed."""
        known = self._seen.get(name)
        stamp = _stamp(file)
        if known is not None and known.is_settled and known.stamp == stamp is not None:
            return known
        now = time.time_ns()
        is_settled = stamp is not None and max(stamp.changed_ns, stamp.modified_ns) + _SETTLED_NS < now
        text, content = self._read(name, file)
        if known is not None and known.content == content:
            return _Seen(stamp, is_settled, content, known.entry)
        last = known.entry.preset if known is not None else None
        entry = _parsed(name, file, text) if text is not None else Entry(None, content)
        if entry.problem is not None:
            kept = " The version before stays in use." if last is not None else ""
            _log.warning("preset %s cannot be used: %s%s", name, self.path / entry.problem, kept)
            entry = Entry(last, entry.problem, text)
        elif known is not None:
            _log.info("preset %s: read again, as its file has changed", name)
        return _Seen(stamp, is_settled, content, entry)

    def _read(self, name: str, file: Path) -> tuple[str | None, str]:
        """Return a file's text, None where it cannot be read, and beside it the text or else why that is so."""
        try:
            text = self._read_text(name, file)
        except PresetError as error:
            return None, error.message
        return text, text

    def _read_text(self, name: str, file: Path) -> str:
        """Return a file's text.

        Raises:
            PresetError: it has no fit name, leaves the folder, or cannot be read.
        """
        where = f"{file.name}:1:1"
        if file.suffix != SUFFIX:
            raise PresetError(f"{where}: a preset's file ends in {SUFFIX}; rename it to {file.stem}{SUFFIX}.")
        if not re.fullmatch(PRESET_NAME, name):
            raise PresetError(f"{where}: {name!r} is no name for a preset: {NAME_RULE}; rename the file.")
        try:
            # A link within the folder is fine, as Kubernetes makes them; elsewhere could be anything.
            target = file.resolve(strict=True)
            if not target.is_relative_to(self.path.resolve()):
                raise PresetError(f"{where}: it is a link that leaves the folder; put the file itself there.")
            data = read_plain(target, MAX_FILE_BYTES + 1)
        except (OSError, RuntimeError) as error:  # a loop of links is a RuntimeError before Python 3.13
            reason = error.strerror if isinstance(error, OSError) else "its links go in a circle"
            raise PresetError(f"{where}: it cannot be read: {reason}.") from error
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
