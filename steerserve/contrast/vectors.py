"""The stored vectors: a folder of safetensors files, each with the directions of one vector and their origin."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
from typing import TYPE_CHECKING

from steerserve.contrast.vector_file import dump_vector, read_vector
from steerserve.core.errors import ConflictError, NotFoundError, StartupError, VectorError
from steerserve.core.literals import VECTOR_NAME
from steerserve.core.names import did_you_mean, short_name

if TYPE_CHECKING:
    from pathlib import Path

    from steerserve.steering.lookups import StoredVector

FOLDER = ".vectors"
"""Folder in the first of `dictionary_dirs`."""
_SUFFIX = ".safetensors"
_NUM_NAMED = 20
"""Most names of stored vectors in an error."""

_log = logging.getLogger(__name__)


class VectorStore:
    """One folder. Any thread, several processes: a file is complete or absent."""

    def __init__(self, folder: Path) -> None:
        """Keep vectors in `folder`, which is created for the first one."""
        self.folder = folder
        self._cache: dict[str, tuple[tuple[int, int, int], StoredVector]] = {}
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """Return the names of all files, also of those that cannot be used."""
        try:
            names = [file.stem for file in self.folder.iterdir() if file.suffix == _SUFFIX]
        except OSError:  # there is no folder yet
            return []
        return sorted(name for name in names if re.fullmatch(VECTOR_NAME, name))

    def all(self) -> list[StoredVector]:
        """Return the vectors that can be used; the others are named in the log."""
        vectors = []
        for name in self.names():
            try:
                vectors.append(self.find(name))
            except VectorError as error:
                _log.warning("%s", error.message)
            except NotFoundError:  # deleted since
                continue
        return vectors

    def find(self, name: str) -> StoredVector:
        """Return a vector, from memory if its file has not changed.

        Raises:
            NotFoundError: no vector has that name.
            VectorError: its file is damaged or something else.
        """
        path = self._path(name)
        try:
            status = path.lstat()
        except OSError:
            raise self._unknown(name) from None
        stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
        with self._lock:
            cached = self._cache.get(name)
        if cached is not None and cached[0] == stamp:
            return cached[1]
        vector = read_vector(path, name)
        with self._lock:
            self._cache[name] = (stamp, vector)
        return vector

    def put(self, vector: StoredVector, *, replace: bool = False) -> None:
        """Keep a vector under its name.

        Raises:
            ConflictError: a vector has that name, and `replace` is false.
            StartupError: the file cannot be written.
        """
        path = self._path(vector.name)
        temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
        content = dump_vector(vector)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
            if replace:
                temporary.replace(path)
            else:
                _move_to_new(temporary, path)
        except OSError as error:
            message = f"The vector {vector.name!r} cannot be written to {self.folder}: {error.strerror}."
            raise StartupError(message, code="vectors_unwritable") from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        """Delete a vector; requests under way have its values already.

        Raises:
            NotFoundError: no vector has that name.
        """
        try:
            self._path(name).unlink()
        except OSError:
            raise self._unknown(name) from None
        with self._lock:
            self._cache.pop(name, None)

    def _path(self, name: str) -> Path:
        if not re.fullmatch(VECTOR_NAME, name):
            raise self._unknown(name)
        return self.folder / f"{name}{_SUFFIX}"

    def _unknown(self, name: str) -> NotFoundError:
        names = self.names()
        listed = f"Stored vectors: {', '.join(names[:_NUM_NAMED])}." if names else "No vectors are stored yet."
        message = f"There is no stored vector {short_name(name)!r}.{did_you_mean(name, names)} {listed}"
        return NotFoundError(message, param="name", code="vector_not_found")


def _move_to_new(temporary: Path, path: Path) -> None:
    """Move a file to a path where no file is.

    Raises:
        ConflictError: there is a file.
    """
    try:
        os.link(temporary, path)  # unlike a rename it fails if there is a file
    except FileExistsError as error:
        message = f"There is a vector {path.stem!r} already. Choose another name, or set `replace`."
        raise ConflictError(message, param="name", code="vector_exists") from error
