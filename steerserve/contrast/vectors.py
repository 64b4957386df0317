"""The stored vectors: a folder of safetensors files, each with one name's directions and where they came from."""

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
"""Below the first of `dictionary_dirs`."""
_SUFFIX = ".safetensors"
_NUM_SHOWN = 20

_log = logging.getLogger(__name__)


class VectorStore:
    """One folder. Any thread, several processes: a file is there whole or not at all."""

    def __init__(self, folder: Path) -> None:
        """Keep vectors in `folder`, which is made when the first one comes."""
        self.folder = folder
        self._read: dict[str, tuple[tuple[int, int, int], StoredVector]] = {}
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """Return the names of all files, whether they can be used or not."""
        try:
            found = [file.stem for file in self.folder.iterdir() if file.suffix == _SUFFIX]
        except OSError:  # there is no folder yet
            return []
        return sorted(name for name in found if re.fullmatch(VECTOR_NAME, name))

    def all(self) -> list[StoredVector]:
        """Return the vectors that can be used; the others are named in the log."""
        found = []
        for name in self.names():
            try:
                found.append(self.find(name))
            except VectorError as error:
                _log.warning("%s", error.message)
            except NotFoundError:  # deleted since
                continue
        return found

    def find(self, name: str) -> StoredVector:
        """Return a vector; from memory where the file is as it was.

        Raises:
            NotFoundError: there is none of that name.
            VectorError: its file is damaged or something else.
        """
        path = self._path(name)
        try:
            status = path.lstat()
        except OSError:
            raise self._unknown(name) from None
        stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
        with self._lock:
            known = self._read.get(name)
        if known is not None and known[0] == stamp:
            return known[1]
        vector = read_vector(path, name)
        with self._lock:
            self._read[name] = (stamp, vector)
        return vector

    def put(self, vector: StoredVector, *, replace: bool = False) -> None:
        """Keep a vector under its name.

        Raises:
            ConflictError: there is one of that name, and it is not to be replaced.
            StartupError: it cannot be written.
        """
        path = self._path(vector.name)
        aside = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
        content = dump_vector(vector)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            aside.write_bytes(content)
            if replace:
                aside.replace(path)
            else:
                _place(aside, path)
        except OSError as error:
            message = f"The vector {vector.name!r} cannot be written to {self.folder}: {error.strerror}."
            raise StartupError(message, code="vectors_unwritable") from error
        finally:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        """Forget a vector; requests under way have its values already.

        Raises:
            NotFoundError: there is none of that name.
        """
        try:
            self._path(name).unlink()
        except OSError:
            raise self._unknown(name) from None
        with self._lock:
            self._read.pop(name, None)

    def _path(self, name: str) -> Path:
        if not re.fullmatch(VECTOR_NAME, name):
            raise self._unknown(name)
        return self.folder / f"{name}{_SUFFIX}"

    def _unknown(self, name: str) -> NotFoundError:
        known = self.names()
        shown = ", ".join(known[:_NUM_SHOWN]) or "none yet"
        message = f"There is no stored vector {short_name(name)!r}.{did_you_mean(name, known)} There are: {shown}."
        return NotFoundError(message, param="name", code="vector_not_found")


def _place(aside: Path, path: Path) -> None:
    """Give a file its name.

    Raises:
        ConflictError: another one has it.
    """
    try:
        os.link(aside, path)  # unlike a rename it fails where there is one
    except FileExistsError as error:
        message = f"There is a vector {path.stem!r} already. Choose another name, or ask to replace it."
        raise ConflictError(message, param="name", code="vector_exists") from error
