"""Text of a Hugging Face data set, read as a stream. `datasets` 4 cannot run code of a data set."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from steerserve.core.errors import CorpusError
from steerserve.core.observer import StoppedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from steerserve.core.observer import Observer
    from steerserve.text.records import RecordFile

_SPEC = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<config>[^@:]+))?(?::(?P<split>[\w.-]+))?", re.ASCII)
_SHUFFLED = 1000
"""Number of rows among which rows are shuffled, since many data sets are sorted."""
_MAX_CHARS = 20_000
"""Most characters that are read of a document, so that a single book does not fill the corpus."""
_COLUMNS = ("messages", "conversations", "text")
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
_NEXT = {"": {"system", "user"}, "system": {"user"}, "user": {"assistant"}, "assistant": {"user"}}
"""Roles that may follow each role: chat templates refuse other orders."""
_LOG_EVERY = 20
"""Rows between two reports of progress."""


@dataclass(frozen=True, slots=True)
class HubText:
    """A split of a data set of the hub."""

    name: str
    config: str | None = None
    split: str = "train"

    @classmethod
    def parse(cls, spec: str) -> Self:
        """Read `OWNER/NAME[@CONFIG][:SPLIT]`.

        Raises:
            CorpusError: `spec` has another form, or the working directory has a folder of that name.
        """
        match = _SPEC.fullmatch(spec)
        if match is None or not {".", ".."}.isdisjoint(match["name"].split("/")):
            message = f"hf:{spec[:200]} is not a data set. Give hf:OWNER/NAME, with @CONFIG and :SPLIT if needed."
            raise CorpusError(message, param="corpus")
        name = match["name"]
        # The library would read the folder.
        if Path(name).exists():
            message = f"hf:{spec} is a data set of the hub, but the working directory has a folder {name}. "
            message += f"Give path:{name} for the folder, or run this in another directory."
            raise CorpusError(message, param="corpus")
        return cls(name, match["config"], match["split"] or "train")

    def __str__(self) -> str:
        """Return the data set as `parse` reads it, behind `hf:`."""
        return f"hf:{self.name}{f'@{self.config}' if self.config else ''}:{self.split}"


def write_hub_text(data_set: HubText, target: RecordFile, *, seed: int, max_chars: int, observer: Observer) -> None:
    """Copy documents into `target` until they have `max_chars` characters or the data set ends.

    Raises:
        CorpusError: the hub has no such data set, it has no text, or the hub cannot be reached.
        StoppedError: the observer asked for a stop; the documents that were written are kept.
    """
    with target, observer.stage(f"Reading {data_set}", max_chars) as progress:
        done = sum(map(_num_chars, target.open()))
        progress.update(done)
        rows = _stream(data_set, seed)
        for number, row in enumerate(itertools.islice(rows, target.num_seen, None), start=target.num_seen):
            if done >= max_chars:
                break
            if observer.should_stop():
                message = f"Stopped while reading {data_set}. The same call resumes there."
                raise StoppedError(message)
            record = _record(row)
            if record is not None:
                target.add(number, record)
                done += _num_chars(record)
            if number % _LOG_EVERY == 0:
                progress.update(done)
        progress.update(done)
        if not done:
            message = f"{data_set} has no document with text."
            raise CorpusError(message, param="corpus")
        target.finish()


def _stream(data_set: HubText, seed: int) -> Iterator[Mapping[str, Any]]:
    """Yield the rows, in an order that is the same in every run with the same seed.

    Raises:
        CorpusError: the hub has no such data set, it has no text, or the hub cannot be reached.
    """
    import datasets  # noqa: PLC0415 slow import

    try:
        rows = datasets.load_dataset(data_set.name, data_set.config, split=data_set.split, streaming=True)
        rows = rows.shuffle(seed=seed, buffer_size=_SHUFFLED)
        first = True
        for row in rows:
            if first:
                _check_columns(data_set, row)
                first = False
            yield row
    except datasets.exceptions.DatasetNotFoundError as error:
        message = f"The hub has no data set {data_set.name}, or it is private or gated: accept its terms, set HF_TOKEN."
        raise CorpusError(message, param="corpus") from error
    except ConnectionError as error:
        message = (
            f"The hub cannot be reached for {data_set}. Check the network (HF_ENDPOINT, proxies), or give a folder."
        )
        raise CorpusError(message, param="corpus") from error
    except (
        OSError,
        ValueError,
        RuntimeError,
        LookupError,
        TypeError,
        NotImplementedError,
        datasets.exceptions.DatasetsError,
    ) as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        message = f"{data_set} cannot be read: {reason.rstrip('.')}."
        raise CorpusError(message, param="corpus") from error


def _check_columns(data_set: HubText, row: Mapping[str, Any]) -> None:
    if not any(name in row for name in _COLUMNS):
        message = f"{data_set} has no column {', '.join(_COLUMNS[:-1])} or {_COLUMNS[-1]}; it has {', '.join(row)}."
        raise CorpusError(message, param="corpus")


def _record(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a row's document; None if it has neither text nor turns that can be read."""
    turns = row.get("messages") or row.get("conversations")
    if turns:
        messages = _messages(turns)
        return {"messages": messages} if messages else None
    text = row.get("text")
    return {"text": text[:_MAX_CHARS]} if isinstance(text, str) and text.strip() else None


def _messages(turns: Iterable[Any]) -> list[dict[str, str]]:
    """Return a conversation in OpenAI's or ShareGPT's form, up to the last turn that can be read and fits."""
    messages: list[dict[str, str]] = []
    total, last_role = 0, ""
    for turn in turns:
        if not isinstance(turn, dict):
            break
        name = str(turn.get("role") or turn.get("from"))
        role, content = _ROLES.get(name, name), turn.get("content") or turn.get("value")
        if role not in _NEXT[last_role] or not isinstance(content, str) or not content.strip():
            break
        messages.append({"role": role, "content": content[: _MAX_CHARS - total]})
        total, last_role = total + len(content), role
        if total >= _MAX_CHARS:
            break
    return messages if any(turn["role"] == "user" for turn in messages) else []


def _num_chars(record: Mapping[str, Any]) -> int:
    return len(record.get("text", "")) + sum(len(turn["content"]) for turn in record.get("messages", ()))
