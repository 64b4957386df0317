"""Makes the text of a run local: data sets, the sample corpus and text that the model writes become files."""

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
"""The entry of a corpus for text that the model writes."""
HUB = "hf:"
"""How the entry of a corpus for a data set of the hub begins."""
_MARGIN = 1.05
"""Surplus of text for documents shorter than a context window, attention sinks and a held-out share above average."""
_CHARS_PER_TOKEN = 5
"""Characters that are read for one token: more than in English, so that the text suffices."""


class TextOptions(ModelOptions, Protocol):
    """Which text a run reads."""

    @property
    def corpus(self) -> tuple[str, ...]:
        """Folders, files, `hf:NAME`, `sample` or `self`."""

    @property
    def tokens(self) -> int:
        """Number of tokens that the run uses."""

    @property
    def seed(self) -> int:
        """Seed of written text, and of the order of a data set."""

    @property
    def text_dir(self) -> Path:
        """Folder for the files."""


def is_local(entry: str) -> bool:
    """Tell whether an entry of a corpus is a folder or file, and not text to be fetched or written first."""
    return entry not in {SELF, SAMPLE} and not entry.startswith(HUB)


def local_corpus(options: TextOptions, observer: Observer) -> tuple[str, ...]:
    """Write the text of `hf:` and `self` entries into `text_dir`, fetch `sample` into the cache; return paths alone.

    Each entry gets an equal share of the tokens; folders and files are used as they are. A call after a stop or a kill
    continues where the earlier one stopped, and does nothing if all files are complete.

    Raises:
        CorpusError: a path is missing, a data set cannot be read, or the model writes nothing worth keeping.
        ModelSourceError: the model that is to write cannot be loaded.
        StoppedError: the observer requested a stop; what was written is kept.
    """
    texts = {entry: HubText.parse(entry.removeprefix(HUB)) for entry in options.corpus if entry.startswith(HUB)}
    for entry in options.corpus:  # a missing path is reported before hours of writing
        if is_local(entry):
            corpus_files(entry)
    num_tokens = math.ceil(options.tokens * _MARGIN / (1 - HELDOUT_SHARE) / len(options.corpus))
    max_chars = num_tokens * _CHARS_PER_TOKEN
    files = {SAMPLE: fetch_sample()} if SAMPLE in options.corpus else {}
    files |= {entry: _hub_text(text, options, max_chars, observer) for entry, text in texts.items()}
    if SELF in options.corpus:
        files[SELF] = _own_text(options, num_tokens, observer)
    return tuple(str(files.get(entry, entry)) for entry in options.corpus)


def _hub_text(text: HubText, options: TextOptions, max_chars: int, observer: Observer) -> Path:
    name = text.name.replace("/", "--")
    target = RecordFile(_path(options, name, str(text), options.seed, max_chars))
    if not target.is_whole:
        write_hub_text(text, target, seed=options.seed, max_chars=max_chars, observer=observer)
    return target.path


def _own_text(options: TextOptions, num_tokens: int, observer: Observer) -> Path:
    target = RecordFile(_path(options, SELF, options.model, options.seed, num_tokens))
    if target.is_whole:
        return target.path
    # Slow imports, not needed by a run whose text is complete.
    from steerserve.jobs.selfchat import write_own_text  # noqa: PLC0415
    from steerserve.model.opening import open_model  # noqa: PLC0415

    _, lens = open_model(options)
    try:
        write_own_text(lens, target, seed=options.seed, num_tokens=num_tokens, observer=observer)
    finally:
        # The run loads the model again, and two models with a cache may not fit into memory.
        del lens
        gc.collect()
    return target.path


def _path(options: TextOptions, name: str, *shape: str | int) -> Path:
    """Return the path of a file. Its name depends on model, seed and amount: no run continues another run's file."""
    digest = hashlib.sha256(json.dumps(shape).encode()).hexdigest()[:8]
    folder = options.text_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"The folder {folder} cannot be created: {error.strerror}."
        raise CorpusError(message, param="out") from error
    return folder / f"{name}-{digest}.jsonl"
