"""Text for training: documents from folders and files, and the split that keeps some of them unseen.

A document is plain text or a conversation. This module knows files, not tokens.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerserve.core.errors import CorpusError
from steerserve.core.files import opened_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

SUFFIXES = (".txt", ".md", ".jsonl")
HELDOUT_SHARE = 0.05
_MAX_CHARS = 4000
"""Plain files are cut at the first blank line after so many characters, so that one large file is many documents."""
_ROLES = {"system", "developer", "user", "assistant"}


@dataclass(frozen=True, slots=True)
class Document:
    """One piece of text; exactly one of `text` and `messages` is set."""

    source: str
    """The file's name, for the report."""
    text: str | None = None
    messages: tuple[tuple[str, str], ...] | None = None
    """Role and content of each turn."""

    @property
    def digest(self) -> str:
        """The sha256 of the content: the same text has the same digest wherever it lies."""
        content = self.text if self.messages is None else json.dumps(self.messages, ensure_ascii=False)
        return hashlib.sha256((content or "").encode("utf-8", errors="replace")).hexdigest()

    def chat(self) -> list[dict[str, str]]:
        """Return the conversation in the shape that chat templates take."""
        return [{"role": role, "content": content} for role, content in self.messages or ()]


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents in a fixed order that depends on their content alone."""

    training: tuple[Document, ...]
    heldout: tuple[Document, ...]
    digest: str
    """Changes when any document does."""

    def sources(self) -> dict[str, int]:
        """Return how many documents came from each file."""
        counts: dict[str, int] = {}
        for document in (*self.training, *self.heldout):
            counts[document.source] = counts.get(document.source, 0) + 1
        return dict(sorted(counts.items()))


def load_corpus(
    sources: Sequence[str | Path], *, heldout_share: float = HELDOUT_SHARE, allowed_dirs: Sequence[Path] | None = None
) -> Corpus:
    """Read the documents of folders and files, drop repeated ones, shuffle them and set some aside by their content.

    Which side a document falls on depends on its text alone, so it stays there when a corpus grows. Each file must lie
    within one of `allowed_dirs`, links followed; None allows all.

    Raises:
        CorpusError: a path that does not exist, a file that cannot be read or lies elsewhere, or fewer than two
            documents.
    """
    by_digest = {
        document.digest: document
        for source in sources
        for file in corpus_files(source)
        for document in _read(file, allowed_dirs)
    }
    if len(by_digest) < 2:  # noqa: PLR2004 one to train on, one to hold out
        places = ", ".join(str(source) for source in sources)
        message = f"The corpus ({places}) has {len(by_digest)} different documents; training needs two or more."
        raise CorpusError(message, param="corpus")
    digests = sorted(by_digest)
    held = {digest for digest in digests if int(digest[:8], 16) < heldout_share * 16**8} or {digests[0]}
    if len(held) == len(digests):
        held.discard(digests[-1])
    # The first eight digits decide the side, so the order takes others.
    order = sorted(digests, key=lambda digest: digest[8:])
    return Corpus(
        training=tuple(by_digest[digest] for digest in order if digest not in held),
        heldout=tuple(by_digest[digest] for digest in order if digest in held),
        digest=hashlib.sha256("".join(digests).encode()).hexdigest(),
    )


def corpus_files(source: str | Path) -> list[Path]:
    """Return the files of a folder, or the file itself; a path may be written `path:PATH`.

    Raises:
        CorpusError: there is no such path, or nothing in it is text for training.
    """
    path = Path(str(source).removeprefix("path:"))
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            message = f"{path} is no text for training; give a folder or a file of type {', '.join(SUFFIXES)}."
            raise CorpusError(message, param="corpus")
        return [path]
    if not path.is_dir():
        message = f"There is no {path}; give a folder or a file of type {', '.join(SUFFIXES)}."
        raise CorpusError(message, param="corpus")
    found = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix.lower() in SUFFIXES)
    if not found:
        message = f"The folder {path} has no file of type {', '.join(SUFFIXES)}."
        raise CorpusError(message, param="corpus")
    return found


def _read(file: Path, allowed_dirs: Sequence[Path] | None) -> Iterator[Document]:
    try:
        with file.open(encoding="utf-8") as opened:
            real = opened_path(opened.fileno()) or file.resolve()
            roots = None if allowed_dirs is None else [folder.resolve() for folder in allowed_dirs]
            if roots is not None and not any(real.is_relative_to(root) for root in roots):
                message = f"{file} leads outside the folders that corpora may lie in; remove the link."
                raise CorpusError(message, param="corpus")
            content = opened.read()
    except (OSError, UnicodeDecodeError) as error:
        message = f"{file} cannot be read as UTF-8 text: {error}"
        raise CorpusError(message, param="corpus") from error
    if file.suffix.lower() == ".jsonl":
        # Not splitlines(): JSON allows U+2028 and its like inside a string.
        yield from _records(file, content.split("\n"))
    else:
        yield from (Document(file.name, text=text) for text in _cut(content))


def _cut(content: str) -> Iterator[str]:
    piece: list[str] = []
    length = 0
    for paragraph in re.split(r"\n\s*\n", content):
        piece.append(paragraph)
        length += len(paragraph)
        if length >= _MAX_CHARS:
            yield "\n\n".join(piece)
            piece, length = [], 0
    rest = "\n\n".join(piece)
    if rest.strip():
        yield rest


def _records(file: Path, lines: Iterable[str]) -> Iterator[Document]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            message = f"{where}: no JSON: {error}"
            raise CorpusError(message, param="corpus") from error
        yield _document(file.name, where, record)


def _document(source: str, where: str, record: Any) -> Document:  # noqa: ANN401 JSON, checked here
    if isinstance(record, dict):
        text, messages = record.get("text"), record.get("messages")
        if isinstance(text, str) and messages is None:
            return Document(source, text=text)
        if isinstance(messages, list) and messages and text is None and all(map(_is_turn, messages)):
            return Document(source, messages=tuple((turn["role"], turn["content"]) for turn in messages))
    message = (
        f'{where}: give {{"text": "..."}} or {{"messages": [{{"role": ..., "content": ...}}, ...]}} '
        f"with roles {', '.join(sorted(_ROLES))} and text as content."
    )
    raise CorpusError(message, param="corpus")


def _is_turn(turn: Any) -> bool:  # noqa: ANN401 JSON, checked here
    return isinstance(turn, dict) and turn.get("role") in _ROLES and isinstance(turn.get("content"), str)
