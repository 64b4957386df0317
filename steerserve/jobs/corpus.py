"""Making the text of a run local: what comes from the hub, and what the model writes itself, become files."""

from __future__ import annotations

import gc
import hashlib
import json
import math
from typing import TYPE_CHECKING, Protocol

from steerserve.core.errors import CorpusError
from steerserve.model.opening import ModelOptions
from steerserve.text.corpus import HELDOUT_SHARE, corpus_files
from steerserve.text.hub import HubText, write_hub_text
from steerserve.text.records import RecordFile
from steerserve.text.sample import SAMPLE, fetch_sample

if TYPE_CHECKING:
    from pathlib import Path

    from steerserve.core.observer import Observer

SELF = "self"
HUB = "hf:"
_MARGIN = 1.05
"""For documents too short for a window, sinks, and a held-out share that chance makes larger."""
_CHARS_PER_TOKEN = 5
"""More than English has, so that rather too much is read than too little."""


class TextOptions(ModelOptions, Protocol):
    """What a run asks of its text."""

    @property
    def corpus(self) -> tuple[str, ...]:
        """Folders, files, `hf:NAME`, `sample` or `self`."""

    @property
    def tokens(self) -> int:
        """Tokens that are used."""

    @property
    def seed(self) -> int:
        """Of what is written, and of the order of a data set."""

    @property
    def text_dir(self) -> Path:
        """The folder for the files."""


def local_corpus(options: TextOptions, observer: Observer) -> tuple[str, ...]:
    """Write what `hf:` and `self` stand for into `text_dir`, and fetch `sample` into the cache; return paths alone.

    Each source gets an equal part of the tokens; folders and files are taken as they are. Called again after a stop or
    a kill it goes on where it was, and does nothing where all is there.

    Raises:
        CorpusError: a path is missing, a data set cannot be read, or the model writes nothing worth keeping.
        ModelSourceError: the model that is to write cannot be loaded.
        StoppedError: the observer asked for it; what was written is kept.
    """
    hub = {source: HubText.parse(source.removeprefix(HUB)) for source in options.corpus if source.startswith(HUB)}
    for source in options.corpus:  # before hours of writing
        if source not in {SELF, SAMPLE} and source not in hub:
            corpus_files(source)
    num_tokens = math.ceil(options.tokens * _MARGIN / (1 - HELDOUT_SHARE) / len(options.corpus))
    made = {SAMPLE: fetch_sample()} if SAMPLE in options.corpus else {}
    for source, wanted in hub.items():
        made[source] = _hub_text(wanted, options, num_tokens * _CHARS_PER_TOKEN, observer)
    if SELF in options.corpus:
        made[SELF] = _own_text(options, num_tokens, observer)
    return tuple(str(made.get(source, source)) for source in options.corpus)


def _hub_text(wanted: HubText, options: TextOptions, max_chars: int, observer: Observer) -> Path:
    name = wanted.name.replace("/", "--")
    target = RecordFile(_path(options, name, str(wanted), options.seed, max_chars))
    if not target.is_whole:
        write_hub_text(wanted, target, seed=options.seed, max_chars=max_chars, observer=observer)
    return target.path


def _own_text(options: TextOptions, num_tokens: int, observer: Observer) -> Path:
    target = RecordFile(_path(options, SELF, options.model, options.seed, num_tokens))
    if target.is_whole:
        return target.path
    # Slow imports, not needed by a run whose text is there.
    from steerserve.jobs.selfchat import write_own_text  # noqa: PLC0415
    from steerserve.model.opening import open_model  # noqa: PLC0415

    _, lens = open_model(options)
    try:
        write_own_text(lens, target, seed=options.seed, num_tokens=num_tokens, observer=observer)
    finally:
        # The run loads the model again, and two with a cache may not fit.
        del lens
        gc.collect()
    return target.path


def _path(options: TextOptions, name: str, *shape: str | int) -> Path:
    """Return a file's path; another model, seed or amount has another name, so that no run takes up another's file."""
    mark = hashlib.sha256(json.dumps(shape).encode()).hexdigest()[:8]
    folder = options.text_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"{folder} cannot be made: {error.strerror}."
        raise CorpusError(message, param="out") from error
    return folder / f"{name}-{mark}.jsonl"
