"""The presets of a server: those in its own folder, and those of the package that the folder does not replace."""

from __future__ import annotations

import os
import re
import stat
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from steerserve.core.config import DEFAULT_MODEL
from steerserve.core.errors import InvalidRequestError, NotFoundError, PresetError, PresetFolderError
from steerserve.core.files import read_plain, staged_file, write_text
from steerserve.core.names import did_you_mean
from steerserve.presets.folder import PresetFolder
from steerserve.presets.preset import MAX_FILE_BYTES, SUFFIX, Preset, PresetDefaults, defaults_of
from steerserve.presets.schema import NAME_RULE, PRESET_NAME

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from steerserve.core.config import Settings

PREVIOUS_FOLDER = ".previous"
_NUM_SHOWN = 20


@dataclass(frozen=True, slots=True)
class PresetSnapshot:
    """All presets at one moment, so that a request sees the same ones from beginning to end. A `PresetLookup`."""

    presets: Mapping[str, Preset]
    """The last good version of each preset, by name."""
    broken: Mapping[str, str]
    """Why the present file cannot be used, by name; `.` is the folder itself."""
    bundled: frozenset[str] = frozenset()
    """Names of the presets that come with the package."""
    model_id: str | None = None
    """Id of the served model; None takes presets of all models."""

    def find(self, name: str) -> Preset:
        """Return a preset that the served model can use.

        Raises:
            NotFoundError: no preset has that name; the message suggests the nearest.
            PresetError: its file has no good version, or it was made for another model.
        """
        preset = self.presets.get(name)
        if preset is None:
            if name in self.broken:
                raise PresetError(f"The preset {name!r} cannot be used: {self.broken[name]}", param="name")
            raise self.unknown(name)
        if (misfit := preset.misfit(self.model_id)) is not None:
            raise PresetError(misfit, param="name")
        return preset

    def usable(self) -> list[str]:
        """Return the names of the presets that the served model can use."""
        return [name for name, preset in self.presets.items() if preset.misfit(self.model_id) is None]

    def defaults(self, names: Iterable[str]) -> PresetDefaults:
        """Return the defaults that presets give a request beside their edits; unknown names give nothing."""
        return defaults_of([self.presets[name] for name in names if name in self.presets])

    def unknown(self, name: str) -> NotFoundError:
        """Return the error for a name that no preset has; it lists the presets."""
        usable = self.usable()
        more = f" and {len(usable) - _NUM_SHOWN} more" if len(usable) > _NUM_SHOWN else ""
        listed = f"The presets are: {', '.join(usable[:_NUM_SHOWN])}{more}." if usable else "There are no presets yet."
        message = f"There is no preset {name[:100]!r}.{did_you_mean(name.lower(), usable)} {listed}"
        return NotFoundError(message, param="name", code="preset_not_found")


@dataclass(slots=True)
class PresetLibrary:
    """Presets in files, read as they are at each call: a server's own folder over the package's presets. Any thread."""

    folder: Path
    bundled: Path | None = None
    model_id: str | None = None
    """Id of the served model; None takes presets of all models."""
    _own: PresetFolder = field(init=False, repr=False)
    _base: PresetFolder | None = field(init=False, repr=False)
    _writing: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        """Prepare the folders; nothing is read yet."""
        self._own = PresetFolder(self.folder)
        self._base = PresetFolder(self.bundled) if self.bundled is not None else None

    def snapshot(self) -> PresetSnapshot:
        """Return the presets as they are now; changed files are read. Not for an event loop."""
        own, unreadable = self._own.scan()
        base = self._base.scan()[0] if self._base is not None else {}
        presets = {name: entry.preset for name, entry in base.items() if entry.preset is not None}
        presets |= {name: entry.preset for name, entry in own.items() if entry.preset is not None}
        broken = {name: entry.problem for name, entry in (base | own).items() if entry.problem is not None}
        if unreadable is not None:
            broken |= {".": unreadable}
        return PresetSnapshot(
            MappingProxyType(dict(sorted(presets.items()))),
            MappingProxyType(broken),
            frozenset(base.keys() - own.keys()),
            self.model_id,
        )

    def find(self, name: str) -> Preset:
        """Return a preset as it is now, as `PresetSnapshot.find` does."""
        return self.snapshot().find(name)

    def put(self, name: str, text: str) -> bool:
        """Write a preset's file, whole or not at all, and keep the previous version; return whether the preset is new.

        Raises:
            InvalidRequestError: a preset cannot have that name.
            PresetError: a folder has the name of the file.
            PresetFolderError: the folder cannot be written.
        """
        check_name(name)
        with self._writing:
            file, before = self._file(name), self.text(name)
            _check_no_folder(file)
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                # In this order, so that a full disk does not cost the previous version for nothing.
                with staged_file(file, text) as written:
                    if before is not None and before != text:
                        self._keep(name, before)
                    written.replace(file)
            except OSError as error:
                raise _unwritable(name, error) from error
        return before is None

    def delete(self, name: str) -> None:
        """Remove a preset's file, and keep its text as the previous version.

        Raises:
            NotFoundError: no preset has that name.
            InvalidRequestError: the preset comes with the package.
            PresetError: a folder has the name of the file.
            PresetFolderError: the folder cannot be written.
        """
        with self._writing:
            file = self._file(name) if re.fullmatch(PRESET_NAME, name) else None
            if file is None or not os.path.lexists(file):
                raise self._undeletable(name)
            _check_no_folder(file)
            try:
                if (text := self.text(name)) is not None:
                    self._keep(name, text)
                file.unlink()
            except FileNotFoundError as error:  # another process removed it first
                raise self._undeletable(name) from error
            except OSError as error:
                raise _unwritable(name, error) from error

    def text(self, name: str) -> str | None:
        """Return the present text of a preset's file, broken or not; None if no such file can be read."""
        is_own, text = self._own.text(name)
        return self._base.text(name)[1] if not is_own and self._base is not None else text

    def previous(self, name: str) -> str | None:
        """Return the text of the previous version; None if none was kept."""
        file = self._previous_file(name)
        try:
            return read_plain(file, MAX_FILE_BYTES).decode("utf-8", errors="replace") if file is not None else None
        except OSError:
            return None

    def has_previous(self, name: str) -> bool:
        """Return whether a previous version was kept; reads no file."""
        file = self._previous_file(name)
        try:
            return file is not None and stat.S_ISREG(file.lstat().st_mode)
        except OSError:
            return False

    def _previous_file(self, name: str) -> Path | None:
        """Return the file of the previous version; None if the name or the folder cannot be trusted."""
        folder = self.folder / PREVIOUS_FOLDER
        is_fit = re.fullmatch(PRESET_NAME, name) is not None and not folder.is_symlink()
        return folder / f"{name}{SUFFIX}" if is_fit else None

    def _keep(self, name: str, text: str) -> None:
        folder = self.folder / PREVIOUS_FOLDER
        if folder.is_symlink():
            message = f"{PREVIOUS_FOLDER} in the folder of presets is a link and could lead anywhere; make it a folder."
            raise PresetFolderError(message)
        folder.mkdir(exist_ok=True)
        write_text(folder / f"{name}{SUFFIX}", text)

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}{SUFFIX}"

    def _undeletable(self, name: str) -> NotFoundError | InvalidRequestError:
        snapshot = self.snapshot()
        if name not in snapshot.bundled:
            return snapshot.unknown(name)
        message = (
            f"The preset {name!r} comes with steerserve and cannot be deleted. Write a preset of the same name, "
            "which replaces it, or set presets_dir: then only that folder's presets are served."
        )
        return InvalidRequestError(message, param="name")


def check_name(name: str) -> None:
    """Check that a preset can have that name.

    Raises:
        InvalidRequestError: it cannot.
    """
    if not re.fullmatch(PRESET_NAME, name):
        raise InvalidRequestError(f"{name[:100]!r} is not a name for a preset: {NAME_RULE}.", param="name")


def open_library(settings: Settings, model_id: str | None = None) -> PresetLibrary:
    """Return the presets of a server with these settings.

    The package's presets are among them if the default model is served and `presets_dir` is not set.
    """
    folder, bundled = settings.presets_dir, None
    if settings.model.source == DEFAULT_MODEL and "presets_dir" not in settings.model_fields_set:
        bundled = bundled_folder()
        if bundled is not None and folder.resolve() == bundled.resolve():
            bundled = None
    return PresetLibrary(folder, bundled, model_id)


def bundled_folder() -> Path | None:
    """Return the folder of the package's presets: inside the package, or beside it in a checkout."""
    package = Path(__file__).parent
    checkout = package.parents[1]
    if (inside := package / "bundled").is_dir():
        return inside
    return checkout / "presets" if (checkout / "pyproject.toml").is_file() else None


def _check_no_folder(file: Path) -> None:
    if file.is_dir() and not file.is_symlink():
        message = f"{file.name} in the folder of presets is itself a folder, not a file; move it away."
        raise PresetError(message, param="name")


def _unwritable(name: str, error: OSError) -> PresetFolderError:
    message = (
        f"The preset {name!r} cannot be written: {error.strerror}. Check the folder of presets and its permissions."
    )
    return PresetFolderError(message)
