"""Documents out of files: each extractor gives the paragraphs of one file, which are joined to documents.

A paragraph that repeats within a source (footers, licences, templates) is kept once.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from steerserve.core.errors import CorpusError
from tools.corpus.markup import aiml_pairs, html_paragraphs, pod_paragraphs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from tools.corpus.archives import Member
    from tools.corpus.manifest import Source

Record = dict[str, Any]
"""A line of the JSONL file: an object with `text` or with `messages`."""
_DOCUMENT_CHARS = 1500
"""A document ends with the first paragraph that makes it longer."""
_LEAST_CHARS = 200
_LEAST_PARAGRAPH = 40
"""Shortest paragraph that is kept: shorter ones are headings, menus and page numbers."""
_LEAST_LETTERS = 0.75
"""Least share of letters and spaces in a paragraph; with less it is code, a table or an address."""
_WRAPPED_AT = 45
_MAX_WRAPPED = 200
"""Least and greatest length of a line in text that was wrapped by hand."""
_LEAST_ANSWER = 30
"""Shortest answer that is kept: half of a chat bot's answers are "Not likely." and the like."""
_MAX_SAME_ANSWER = 3
_PAIRS_A_CHAT = 4


def read_documents(source: Source, members: Iterable[Member]) -> Iterator[Record]:
    """Yield the documents of a source.

    Raises:
        CorpusError: a file does not have the format that the manifest says.
    """
    if source.extract == "aiml":
        yield from _chats(members)
        return
    seen: set[bytes] = set()
    for member in members:
        kept = []
        for paragraph in _PARAGRAPHS[source.extract](_decode(member.content), source):
            # JSON can hold half a surrogate pair, which UTF-8 cannot encode.
            text = paragraph.strip().encode("utf-8", errors="replace").decode()
            digest = hashlib.sha256(text.encode()).digest()
            if _is_prose(text) and digest not in seen:
                seen.add(digest)
                kept.append(text)
        yield from ({"text": text} for text in _documents(kept))


def num_chars(record: Record) -> int:
    """Return how many characters of text a document has."""
    return len(record.get("text", "")) + sum(len(turn["content"]) for turn in record.get("messages", ()))


def thin_out(records: Iterable[Record], max_chars: int) -> list[Record]:
    """Keep at most `max_chars` characters: documents from the whole source, chosen by their hash, in their order."""
    kept = [(hashlib.sha256(json.dumps(record).encode()).digest(), record) for record in records]
    total, chosen = 0, set()
    for digest, record in sorted(kept, key=lambda pair: pair[0]):
        total += num_chars(record)
        if total > max_chars:
            break
        chosen.add(digest)
    return [record for digest, record in kept if digest in chosen]


def _chats(members: Iterable[Member]) -> Iterator[Record]:
    num_given: Counter[str] = Counter()
    pairs: dict[tuple[str, str], None] = {}
    for pair in (pair for member in members for pair in aiml_pairs(_decode(member.content))):
        answer = pair[1]
        if pair not in pairs and len(answer) >= _LEAST_ANSWER and num_given[answer] < _MAX_SAME_ANSWER:
            num_given[answer] += 1
            pairs[pair] = None
    # In the order of hashes: in that of the files each chat would be about one subject, in one manner.
    order = sorted(pairs, key=lambda pair: hashlib.sha256("\n".join(pair).encode()).digest())
    for start in range(0, len(order), _PAIRS_A_CHAT):
        turns = [
            {"role": role, "content": content}
            for pair in order[start : start + _PAIRS_A_CHAT]
            for role, content in zip(("user", "assistant"), pair, strict=True)
        ]
        yield {"messages": turns}


def _decode(content: bytes) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("cp1252", errors="replace")
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")


def _documents(paragraphs: Iterable[str]) -> Iterator[str]:
    parts: list[str] = []
    length = 0
    for part in (part for paragraph in paragraphs for part in _cut(paragraph)):
        parts.append(part)
        length += len(part)
        if length >= _DOCUMENT_CHARS:
            yield "\n\n".join(parts)
            parts, length = [], 0
    if length >= _LEAST_CHARS:
        yield "\n\n".join(parts)


def _cut(paragraph: str) -> Iterator[str]:
    """Cut a paragraph that is as long as a speech between its sentences."""
    while len(paragraph) > 2 * _DOCUMENT_CHARS:
        end = re.compile(r"[.!?]\W*\s").search(paragraph, _DOCUMENT_CHARS)
        if end is None:
            break
        yield paragraph[: end.end()].strip()
        paragraph = paragraph[end.end() :]
    yield paragraph


def _is_prose(text: str) -> bool:
    letters = sum(character.isalpha() or character.isspace() for character in text)
    return len(text) >= _LEAST_PARAGRAPH and letters >= _LEAST_LETTERS * len(text)


def _text(content: str, _: Source) -> Iterator[str]:
    for block in re.split(r"\n\s*\n", content):
        lines = [line.strip() for line in block.split("\n") if line.strip()]
        if any(len(line) > _MAX_WRAPPED for line in lines):
            yield from lines
        elif all(len(line) >= _WRAPPED_AT for line in lines[:-1]):
            yield " ".join(lines)
        else:
            yield "\n".join(lines)


def _mail(content: str, source: Source) -> Iterator[str]:
    """Yield the paragraphs of a message's body without its quotations; messages in HTML or base64 are left out."""
    _, _, body = content.partition("\n\n")
    if "<html" not in body.lower() and "base64" not in content:
        yield from _text("\n".join(line for line in body.split("\n") if not line.startswith((">", "|"))), source)


def _fortunes(content: str, _: Source) -> Iterator[str]:
    return (saying.replace("\t", " ") for saying in re.split(r"^%$", content, flags=re.MULTILINE))


def _tagged(content: str, _: Source) -> Iterator[str]:
    """Yield the paragraphs of a text in which each word has its part of speech behind a slash (Brown corpus)."""
    for block in re.split(r"\n\s*\n", content):
        words = [token.rsplit("/", 1)[0] for token in block.split() if "/" in token]
        text = re.sub(r" ([.,;:?!)]|'')", r"\1", " ".join(words)).replace("`` ", '"').replace("''", '"')
        yield re.sub(r"([.,;:?!])\1+", r"\1", text.replace("( ", "("))


def _json(content: str, source: Source) -> Iterator[str]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        message = f"The source {source.name} has a file that is not JSON: {error}"
        raise CorpusError(message, param="corpus") from error
    return _texts(value, source.field)


def _texts(value: object, field: str | None) -> Iterator[str]:
    """Yield every text in a JSON value; with `field`, only the texts under that key."""
    # A stack and no recursion: the file decides how deep it nests. The flag says whether a text there is yielded.
    stack: list[tuple[object, bool]] = [(value, field is None)]
    while stack:
        item, is_selected = stack.pop()
        if isinstance(item, str):
            if is_selected:
                yield item
        elif isinstance(item, list):
            stack += [(child, is_selected) for child in reversed(item)]
        elif isinstance(item, dict):
            stack += [(child, field is None or key == field) for key, child in reversed(item.items())]


_PARAGRAPHS: Mapping[str, Callable[[str, Source], Iterator[str]]] = {
    "fortunes": _fortunes,
    "html": lambda content, _: html_paragraphs(content),
    "json": _json,
    "mail": _mail,
    "pod": lambda content, _: pod_paragraphs(content),
    "tagged": _tagged,
    "text": _text,
}
