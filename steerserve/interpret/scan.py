"""One pass over a text that counts, for several dictionaries at once, what their features do. Resumable."""

from __future__ import annotations

import json
import os
from itertools import islice
from typing import TYPE_CHECKING, Any

import safetensors
import torch
from safetensors.torch import load_file, save_file

from steerserve.core.errors import CorpusError
from steerserve.core.observer import StoppedError
from steerserve.interpret.scanned_rows import ScannedRows
from steerserve.interpret.tally import Tally
from steerserve.model.norms import SINK_RATIO, counted_tokens

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from jaxtyping import Bool, Float
    from torch import Tensor

    from steerserve.core.observer import Observer
    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.model.lens import LensModel
    from steerserve.text.windows import WindowBatch

_SAVE_EVERY = 32
"""Batches between checkpoints."""
_READ_TOKENS = {"cpu": 512}
"""Tokens that the model reads at a time; on a CPU the activations of more do not fit its caches. Elsewhere: a batch."""
_ENCODED = 2**23
"""Feature activations that are held at a time; a single longer row is computed by itself."""


@torch.no_grad()
def scan(
    lens: LensModel,
    dictionaries: Mapping[str, Dictionary],
    batches: Iterator[WindowBatch],
    tokens: int,
    checkpoint: Path,
    observer: Observer,
) -> dict[str, Tally]:
    """Read up to `tokens` tokens (fewer if the text ends), special ones left out; return what was counted.

    What is counted of a dictionary does not depend on the others. Sinks are tokens of a norm over five times the
    dictionary's median: they are read, and left out as well. Called again after a stop or a kill, with the same
    arguments, it goes on from `checkpoint` to the same result.

    Raises:
        CorpusError: the text has no token to read.
        StoppedError: the observer asked for it; what was read is kept.
    """
    tallies = {name: Tally(dictionary.d_sae, lens.vocab_size, lens.device) for name, dictionary in dictionaries.items()}
    num_batches, num_read, is_whole = _load(checkpoint, tallies) if checkpoint.is_file() else (0, 0, False)
    if is_whole:
        return tallies
    hooks = tuple(dict.fromkeys(name for dictionary in dictionaries.values() for name in dictionary.hook_names))
    with observer.stage("Reading text", tokens) as progress:
        for batch in islice(batches, num_batches, None):
            wanted = batch.is_plain & (batch.is_plain.flatten().cumsum(0).view_as(batch.is_plain) <= tokens - num_read)
            found = _read(lens, batch, hooks)
            for name, dictionary in dictionaries.items():
                _count(tallies[name], dictionary, batch, found, wanted)
            num_batches += 1
            num_read += int(wanted.sum())
            progress.update(num_read)
            if num_read == tokens:
                break
            is_stopping = observer.should_stop()
            if is_stopping or num_batches % _SAVE_EVERY == 0:
                _save(checkpoint, tallies, num_batches, num_read, is_whole=False)
            if is_stopping:
                message = f"Stopped after reading {num_read} tokens; the same call goes on from there."
                raise StoppedError(message)
    if not any(int(tally.spread.num_tokens) for tally in tallies.values()):
        message = "The corpus has no token to read: all are special tokens or attention sinks."
        raise CorpusError(message, param="corpus")
    _save(checkpoint, tallies, num_batches, num_read, is_whole=True)
    return tallies


def _read(lens: LensModel, batch: WindowBatch, hooks: Sequence[str]) -> dict[str, Float[Tensor, "rows pos width"]]:
    """Return a batch's activations at some hook points."""
    num_rows = max(1, _READ_TOKENS.get(lens.device.type, batch.ids.numel()) // batch.ids.shape[1])
    parts = [lens.read(ids, hooks) for ids in batch.ids.split(num_rows)]
    return {hook: torch.cat([part[hook] for part in parts]) for hook in hooks}


def _count(
    tally: Tally,
    dictionary: Dictionary,
    batch: WindowBatch,
    found: Mapping[str, Float[Tensor, "rows pos width"]],
    wanted: Bool[Tensor, "rows pos"],
) -> None:
    """Count a batch, as many rows at a time as memory is meant for; sinks are known by their norm where edits are."""
    acts, edited = found[dictionary.read_hook_name], found[dictionary.hook_name]
    num_rows = max(1, _ENCODED // (acts.shape[1] * dictionary.d_sae))
    whole = (batch.ids.to(acts.device), batch.is_real.to(acts.device), acts, edited, wanted)
    parts: Sequence[tuple[Tensor, ...]] = [tensor.split(num_rows) for tensor in whole]
    for ids, real, read, written, asked in zip(*parts, strict=True):
        keep = counted_tokens(written, asked, SINK_RATIO * dictionary.median_norm)
        tally.add(ScannedRows.of(ids, real, keep), dictionary.encode(read[keep].float()))


def _save(checkpoint: Path, tallies: Mapping[str, Tally], num_batches: int, num_read: int, *, is_whole: bool) -> None:
    state = {"num_batches": num_batches, "num_read": num_read, "is_whole": is_whole}
    tensors = {
        f"{name}/{part}": tensor.cpu().contiguous()
        for name, tally in tallies.items()
        for part, tensor in tally.tensors().items()
    }
    aside = checkpoint.with_name(f".{checkpoint.name}.{os.getpid()}")
    save_file(tensors, aside, {"state": json.dumps(state)})
    aside.replace(checkpoint)


def _load(checkpoint: Path, tallies: Mapping[str, Tally]) -> tuple[int, int, bool]:
    with safetensors.safe_open(checkpoint, "pt") as file:
        state: dict[str, Any] = json.loads(file.metadata()["state"])
    tensors = load_file(checkpoint)
    for name, tally in tallies.items():
        tally.load(
            {key.removeprefix(f"{name}/"): tensor for key, tensor in tensors.items() if key.startswith(f"{name}/")}
        )
    return state["num_batches"], state["num_read"], state["is_whole"]
