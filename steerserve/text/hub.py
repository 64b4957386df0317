"""Text of a Hugging Face data set, read as a stream. No code of a data set is run: the library has no way to."""

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
"""Rows that are held to be put in another order; many data sets are sorted."""
_MAX_CHARS = 20_000
"""What a longer document has beyond these is left out, so that no single book is the corpus."""
_COLUMNS = ("messages", "conversations", "text")
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
_NEXT = {"": {"system", "user"}, "system": {"user"}, "user": {"assistant"}, "assistant": {"user"}}
"""Who may speak after whom: chat templates refuse anything else."""
_LOG_EVERY = 20


@dataclass(frozen=True, slots=True)
class HubText:
    """Which part of which data set."""

    name: str
    config: str | None = None
    split: str = "train"

    @classmethod
    def parse(cls, spec: str) -> Self:
        """Read `OWNER/NAME[@CONFIG][:SPLIT]`.

        Raises:
            CorpusError: it is something else, or a folder here has that name.
        """
        found = _SPEC.fullmatch(spec)
        if found is None or not {".", ".."}.isdisjoint(found["name"].split("/")):
            message = f"hf:{spec[:200]} names no data set: give hf:OWNER/NAME, with @CONFIG and :SPLIT where needed."
            raise CorpusError(message, param="corpus")
        # The library would read the folder, which nobody who names a data set means.
        if Path(found["name"]).exists():
            message = f"hf:{spec} names a data set of the hub, and there is a folder {found['name']} here: "
            message += f"give path:{found['name']} for the folder, or start elsewhere."
            raise CorpusError(message, param="corpus")
        return cls(found["name"], found["config"], found["split"] or "train")

    def __str__(self) -> str:
        """Return it as it is written."""
        return f"hf:{self.name}{f'@{self.config}' if self.config else ''}:{self.split}"


def write_hub_text(wanted: HubText, target: RecordFile, *, seed: int, max_chars: int, observer: Observer) -> None:
    """Copy documents into `target` until they have `max_chars` characters or there are no more.

    Raises:
        CorpusError: no such data set, no text in it, or the hub cannot be reached.
        StoppedError: the observer asked for it; what was written is kept.
    """
    with target, observer.stage(f"Reading {wanted}", max_chars) as progress:
        done = sum(map(_num_chars, target.open()))
        progress.update(done)
        rows = _stream(wanted, seed)
        for number, row in enumerate(itertools.islice(rows, target.num_seen, None), start=target.num_seen):
            if done >= max_chars:
                break
            if observer.should_stop():
                message = f"Stopped while reading {wanted}; the same call goes on from there."
                raise StoppedError(message)
            record = _record(row)
            if record is not None:
                target.add(number, record)
                done += _num_chars(record)
            if number % _LOG_EVERY == 0:
                progress.update(done)
        progress.update(done)
        if not done:
            message = f"{wanted} has no document with text in it."
            raise CorpusError(message, param="corpus")
        target.finish()


def _stream(wanted: HubText, seed: int) -> Iterator[Mapping[str, Any]]:
    """Yield the rows, which are the same in every run.

    Raises:
        CorpusError: no such data set, no text in it, or the hub cannot be reached.
    """
    import datasets  # noqa: PLC0415 slow import

    try:
        rows = datasets.load_dataset(wanted.name, wanted.config, split=wanted.split, streaming=True)
        rows = rows.shuffle(seed=seed, buffer_size=_SHUFFLED)
        first = True
        for row in rows:
            if first:
                _check_columns(wanted, row)
                first = False
            yield row
    except datasets.exceptions.DatasetNotFoundError as error:
        message = f"The hub has no data set {wanted.name} (or it is private or gated: accept its terms, set HF_TOKEN)."
        raise CorpusError(message, param="corpus") from error
    except ConnectionError as error:
        message = f"The hub cannot be reached for {wanted}. Check the network (HF_ENDPOINT, proxies), or give a folder."
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
        message = f"{wanted} cannot be read: {reason.rstrip('.')}."
        raise CorpusError(message, param="corpus") from error


def _check_columns(wanted: HubText, row: Mapping[str, Any]) -> None:
    if not any(name in row for name in _COLUMNS):
        message = f"{wanted} has no column {', '.join(_COLUMNS[:-1])} or {_COLUMNS[-1]}; it has {', '.join(row)}."
        raise CorpusError(message, param="corpus")


def _record(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a row's document; None for one without text, or with turns of another kind."""
    turns = row.get("messages") or row.get("conversations")
    if turns:
        messages = _messages(turns)
        return {"messages": messages} if messages else None
    text = row.get("text")
    return {"text": text[:_MAX_CHARS]} if isinstance(text, str) and text.strip() else None


def _messages(turns: Iterable[Any]) -> list[dict[str, str]]:
    """Return a conversation, as OpenAI and ShareGPT write one, up to its last turn that can be read and fits."""
    messages: list[dict[str, str]] = []
    total, before = 0, ""
    for turn in turns:
        if not isinstance(turn, dict):
            break
        said = turn.get("role") or turn.get("from")
        role, content = _ROLES.get(str(said), str(said)), turn.get("content") or turn.get("value")
        if role not in _NEXT[before] or not isinstance(content, str) or not content.strip():
            break
        messages.append({"role": role, "content": content[: _MAX_CHARS - total]})
        total, before = total + len(content), role
        if total >= _MAX_CHARS:
            break
    return messages if any(turn["role"] == "user" for turn in messages) else []


def _num_chars(record: Mapping[str, Any]) -> int:
    return len(record.get("text", "")) + sum(len(turn["content"]) for turn in record.get("messages", ()))
