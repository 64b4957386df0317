"""Reads the files inside packages in memory: nothing is unpacked to disk, so no archive chooses where bytes go.

Sizes are bounded, since a small archive can expand to endless data.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import lzma
import stat
import subprocess
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from steerserve.core.errors import CorpusError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence
    from pathlib import Path
    from typing import IO

_ZIPS = (".zip", ".whl")
_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    OSError,
    RuntimeError,  # a ZIP with a password
    NotImplementedError,  # one with a compression that Python lacks
)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much an archive may hold."""

    file_bytes: int = 64 << 20
    """Most bytes, uncompressed, of one file that is read."""
    total_bytes: int = 4 << 30
    """Most bytes, uncompressed, of all files, those included that are not read."""
    num_files: int = 500_000
    """Most files, those included that are not read."""


class Member(NamedTuple):
    """A file in an archive."""

    name: str
    content: bytes


def read_members(
    archive: Path, files: Sequence[str], exclude: Sequence[str] = (), *, limits: Limits | None = None
) -> Generator[Member, None, None]:
    """Yield the regular files of a .deb, .zip, .whl or compressed tar whose path matches; `.gz` files are unpacked.

    Links and devices are passed over.

    Raises:
        CorpusError: the archive is damaged, too large, or names a path outside of itself.
    """
    limits = limits or Limits()
    patterns = _Patterns(tuple(files), tuple(exclude))
    try:
        if archive.suffix in _ZIPS:
            yield from _read_zip(archive, patterns, limits)
        elif archive.suffix == ".deb":
            with _open_deb(archive) as stream:
                yield from _read_tar(stream, archive.name, patterns, limits)
        else:
            with archive.open("rb") as stream:
                yield from _read_tar(stream, archive.name, patterns, limits)
    except _DAMAGED as error:
        message = f"{archive.name} cannot be read: {str(error) or type(error).__name__}."
        raise CorpusError(message, param="corpus") from error


@dataclass(frozen=True, slots=True)
class _Patterns:
    files: tuple[str, ...]
    exclude: tuple[str, ...]

    def __contains__(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.files) and not any(
            fnmatchcase(name, pattern) for pattern in self.exclude
        )


@dataclass(slots=True)
class _Count:
    """Number and size of the archive's files so far."""

    archive: str
    limits: Limits
    num_files: int = 0
    total_bytes: int = 0

    def add(self, size: int) -> None:
        self.num_files += 1
        self.total_bytes += size
        if self.num_files > self.limits.num_files or self.total_bytes > self.limits.total_bytes:
            message = (
                f"{self.archive} holds over {self.limits.num_files} files or {self.limits.total_bytes >> 20} MiB, "
                "the most that a package of text may have."
            )
            raise CorpusError(message, param="corpus")


def _read_tar(stream: IO[bytes], archive: str, patterns: _Patterns, limits: Limits) -> Iterator[Member]:
    count = _Count(archive, limits)
    with tarfile.open(fileobj=stream, mode="r|*") as tar:
        for member in tar:
            name = _inner_name(member.name, archive)
            count.add(member.size)
            if not member.isreg() or name not in patterns:
                continue
            packed = tar.extractfile(member)
            if packed is not None:
                yield Member(name, _read(packed, name, archive, limits))


def _read_zip(path: Path, patterns: _Patterns, limits: Limits) -> Iterator[Member]:
    count = _Count(path.name, limits)
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = _inner_name(info.filename, path.name)
            count.add(info.file_size)
            kind = stat.S_IFMT(info.external_attr >> 16)
            if info.is_dir() or kind not in {0, stat.S_IFREG} or name not in patterns:
                continue
            with archive.open(info) as packed:
                yield Member(name, _read(packed, name, path.name, limits))


def _read(packed: IO[bytes], name: str, archive: str, limits: Limits) -> bytes:
    """Read a file, and decompress it if it is a `.gz`; the sizes that headers claim are not trusted."""
    content = packed.read(limits.file_bytes + 1)
    if name.endswith(".gz") and len(content) <= limits.file_bytes:
        with gzip.open(io.BytesIO(content)) as inner:
            content = inner.read(limits.file_bytes + 1)
    if len(content) > limits.file_bytes:
        message = f"{name} in {archive} is larger than {limits.file_bytes >> 20} MiB, the most that one file may have."
        raise CorpusError(message, param="corpus")
    return content


def _inner_name(name: str, archive: str) -> str:
    """Return the path without `./`; refuse one that leads out of the archive, which no honest package has."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        message = f"{archive} names the path {name[:200]!r}, which leads out of it; the archive was not read."
        raise CorpusError(message, param="corpus")
    return str(path)


@contextlib.contextmanager
def _open_deb(archive: Path) -> Iterator[IO[bytes]]:
    """Open the tar of a Debian package. dpkg-deb knows every compression that apt's packages use."""
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)  # noqa: S603 fixed words
    except FileNotFoundError as error:
        message = "dpkg-deb is missing; it is needed to read Debian's packages."
        raise CorpusError(message, param="corpus") from error
    with process:
        if process.stdout is None:
            message = f"{archive.name} cannot be read: dpkg-deb has no output."
            raise CorpusError(message, param="corpus")
        try:
            yield process.stdout
        except BaseException:
            process.kill()
            raise
        # The padding after the tar's end must be read, or dpkg-deb fails at writing it.
        while process.stdout.read(1 << 16):
            pass
    if process.returncode != 0:
        message = f"{archive.name} cannot be read: dpkg-deb ended with {process.returncode}."
        raise CorpusError(message, param="corpus")
