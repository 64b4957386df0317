"""One scan of a text, which counts for several dictionaries at once what their features do. Resumable."""

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
"""Tokens that the model reads at once, by device type; a whole batch elsewhere. A CPU's caches hold no more."""
_MAX_ENCODED = 2**23
"""Most feature activations that are held at once; a row with more is encoded by itself."""


@torch.no_grad()
def scan(
    lens: LensModel,
    dictionaries: Mapping[str, Dictionary],
    batches: Iterator[WindowBatch],
    tokens: int,
    checkpoint: Path,
    observer: Observer,
) -> dict[str, Tally]:
    """Scan up to `tokens` tokens, special tokens not counted, fewer if the text ends; return the tallies by name.

    The tally of a dictionary does not depend on the others. Attention sinks (tokens whose norm is over five times the
    dictionary's median) are read and not counted either. Called again with the same arguments after a stop or a kill,
    the scan goes on from `checkpoint` to the same result.

    Raises:
        CorpusError: the text has no token to count.
        StoppedError: the observer requested a stop; the checkpoint has everything that was read.
    """
    tallies = {name: Tally(dictionary.d_sae, lens.vocab_size, lens.device) for name, dictionary in dictionaries.items()}
    num_batches, num_read, is_done = _load(checkpoint, tallies) if checkpoint.is_file() else (0, 0, False)
    if is_done:
        return tallies
    hooks = tuple(dict.fromkeys(name for dictionary in dictionaries.values() for name in dictionary.hook_names))
    with observer.stage("Reading text", tokens) as progress:
        for batch in islice(batches, num_batches, None):
            num_plain = batch.is_plain.flatten().cumsum(0).view_as(batch.is_plain)
            counted = batch.is_plain & (num_plain <= tokens - num_read)
            values = _read(lens, batch, hooks)
            for name, dictionary in dictionaries.items():
                _count(tallies[name], dictionary, batch, values, counted)
            num_batches += 1
            num_read += int(counted.sum())
            progress.update(num_read)
            if num_read == tokens:
                break
            is_stopping = observer.should_stop()
            if is_stopping or num_batches % _SAVE_EVERY == 0:
                _save(checkpoint, tallies, num_batches, num_read, is_done=False)
            if is_stopping:
                message = f"Stopped after reading {num_read} tokens; the same call goes on from there."
                raise StoppedError(message)
    if not any(int(tally.spread.num_tokens) for tally in tallies.values()):
        message = "The corpus has no token to count: all are special tokens or attention sinks."
        raise CorpusError(message, param="corpus")
    _save(checkpoint, tallies, num_batches, num_read, is_done=True)
    return tallies


def _read(lens: LensModel, batch: WindowBatch, hooks: Sequence[str]) -> dict[str, Float[Tensor, "rows pos width"]]:
    """Return the values of a batch at some hook points."""
    num_rows = max(1, _READ_TOKENS.get(lens.device.type, batch.ids.numel()) // batch.ids.shape[1])
    parts = [lens.read(ids, hooks) for ids in batch.ids.split(num_rows)]
    return {hook: torch.cat([part[hook] for part in parts]) for hook in hooks}


def _count(
    tally: Tally,
    dictionary: Dictionary,
    batch: WindowBatch,
    values: Mapping[str, Float[Tensor, "rows pos width"]],
    counted: Bool[Tensor, "rows pos"],
) -> None:
    """Count a batch, some rows at a time. Sinks are tokens with a large norm at the hook point of the edits."""
    inputs, edited = values[dictionary.read_hook_name], values[dictionary.hook_name]
    num_rows = max(1, _MAX_ENCODED // (inputs.shape[1] * dictionary.d_sae))
    tensors = (batch.ids.to(inputs.device), batch.is_real.to(inputs.device), inputs, edited, counted)
    parts: Sequence[tuple[Tensor, ...]] = [tensor.split(num_rows) for tensor in tensors]
    for ids, real, x, x_edited, plain in zip(*parts, strict=True):
        keep = counted_tokens(x_edited, plain, SINK_RATIO * dictionary.median_norm)
        tally.add(ScannedRows.of(ids, real, keep), dictionary.encode(x[keep].float()))


def _save(checkpoint: Path, tallies: Mapping[str, Tally], num_batches: int, num_read: int, *, is_done: bool) -> None:
    state = {"num_batches": num_batches, "num_read": num_read, "is_whole": is_done}
    tensors = {
        f"{name}/{part}": tensor.cpu().contiguous()
        for name, tally in tallies.items()
        for part, tensor in tally.tensors().items()
    }
    temporary = checkpoint.with_name(f".{checkpoint.name}.{os.getpid()}")
    save_file(tensors, temporary, {"state": json.dumps(state)})
    temporary.replace(checkpoint)


def _load(checkpoint: Path, tallies: Mapping[str, Tally]) -> tuple[int, int, bool]:
    with safetensors.safe_open(checkpoint, "pt") as file:
        state: dict[str, Any] = json.loads(file.metadata()["state"])
    tensors = load_file(checkpoint)
    for name, tally in tallies.items():
        tally.load(
            {key.removeprefix(f"{name}/"): tensor for key, tensor in tensors.items() if key.startswith(f"{name}/")}
        )
    return state["num_batches"], state["num_read"], state["is_whole"]
