"""The disk space and memory that a job needs, and whether the machine has them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from steerserve.core.errors import InvalidRequestError
from steerserve.jobs.corpus import is_local
from steerserve.text.corpus import SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from steerserve.core.literals import JobKind
    from steerserve.jobs.job import JobSpec
    from steerserve.training.options import DictionaryOptions, TrainOptions

MAX_CORPUS_BYTES = 4 * 10**9
"""Largest total size of the files that one job reads."""
TALLY_BYTES = 24_000
"""Most bytes that an interpretation keeps in memory for one feature."""
_FLOAT16_BYTES, _FLOAT32_BYTES = 2, 4
_CHECKPOINT_COPIES = 6
"""Weights and Adam's two moments, twice: the previous checkpoint stays until the new one is complete."""
_BUFFER_COPIES = 2
"""Copies of the buffer: one in each checkpoint."""
_TRAINING_COPIES = 4
"""Weights, gradients and Adam's two moments."""
_BATCH_COPIES = 3
"""Copies of a batch's feature activations: before and after the non-linearity, and their gradient."""
_SAMPLED_ROWS = 200_000
"""Number of activations that a trained dictionary is measured on."""
_LOGIT_COPIES = 5
"""Copies of a batch's logits that exist at once while held-out text is measured."""
_LOGIT_ROWS = 512
_INDEX_SHARE = 0.5
"""Memory for the index of a corpus, as a share of its size: 200 bytes a document, and most have over 400."""
_TEXT_BYTES_PER_TOKEN = 16
"""Upper estimate for text that must be fetched or written first."""
_STORE_BYTES = 8_000
"""Upper estimate for one feature in the feature store, with its indexes."""
_INTERPRET_BYTES = 512 * 1024**2
"""Memory of an interpretation for batches and logits, whatever the dictionary."""
_DISK_MARGIN_BYTES = 512 * 1024**2
"""Disk space left to other programs."""
_DISK_ADVICE: Mapping[JobKind, tuple[str, str]] = {
    "train": ("tokens", "Send fewer tokens, a smaller d_sae, or 'storage': 'buffer'."),
    "interpret": ("dictionaries", "Send fewer dictionaries at once."),
}
"""The parameter that an error names if the disk is too small, and what to change."""
_MEMORY_ADVICE: Mapping[JobKind, tuple[str, str]] = {
    "train": ("d_sae", "Send a smaller d_sae or batch_size, or fewer dictionaries at once."),
    "interpret": ("dictionaries", "Send fewer dictionaries at once."),
}
_NAMES: Mapping[JobKind, str] = {"train": "Training", "interpret": "Interpreting"}


@dataclass(frozen=True, slots=True)
class Needs:
    """Most bytes that a job takes."""

    disk: int
    memory: int
    """Bytes of the machine's memory."""
    device_memory: int = 0
    """Bytes of the model's device, if the device has a memory of its own."""


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What the model takes in a process of its own."""

    weight_bytes: int
    vocab_size: int
    widths: Mapping[str, int]
    """Width of the vectors at each hook point."""
    is_on_cpu: bool = True


def training_needs(options: TrainOptions, model: ModelSize) -> Needs:
    """Return what a training run takes.

    Raises:
        InvalidRequestError: its corpus is larger than one job reads.
    """
    widths = model.widths
    weights = sum(_weight_bytes(dictionary, widths) for dictionary in options.dictionaries)
    buffer = options.buffer_mb * 1_000_000 if options.storage == "buffer" else 0
    disk = weights * _CHECKPOINT_COPIES + buffer * _BUFFER_COPIES
    if options.storage == "disk":
        disk += sum(options.tokens * widths[hook] * _FLOAT16_BYTES for hook in options.hooks)
    disk += _made_text_bytes(options.corpus, options.tokens)
    batch = options.tokens_a_step * max(dictionary.d_sae for dictionary in options.dictionaries) * _FLOAT32_BYTES
    logits = _LOGIT_ROWS * model.vocab_size * _FLOAT32_BYTES * _LOGIT_COPIES
    computing = model.weight_bytes + weights * _TRAINING_COPIES + batch * _BATCH_COPIES + logits
    rows = min(options.tokens, _SAMPLED_ROWS) * max(widths[hook] for hook in options.hooks) * _FLOAT32_BYTES
    holding = buffer + rows + _index_bytes(options.corpus, options.tokens)
    return Needs(disk, holding + computing) if model.is_on_cpu else Needs(disk, holding, computing)


def interpretation_needs(
    sizes: Sequence[tuple[int, int]], weight_bytes: int, corpus: Sequence[str], tokens: int
) -> Needs:
    """Return what an interpretation takes.

    Args:
        sizes: Vector width and number of features of each dictionary.
        weight_bytes: Bytes of the model's weights, if they lie in the machine's memory; otherwise 0.
        corpus: Entries of the corpus.
        tokens: Number of tokens that are read.

    Raises:
        InvalidRequestError: the corpus is larger than one job reads.
    """
    num_features = sum(d_sae for _, d_sae in sizes)
    # The previous checkpoint stays until the new one is complete, and so does the store.
    disk = num_features * 2 * (TALLY_BYTES + _STORE_BYTES) + tokens * _TEXT_BYTES_PER_TOKEN
    memory = num_features * TALLY_BYTES + 2 * sum(d_in * d_sae for d_in, d_sae in sizes) * _FLOAT32_BYTES
    return Needs(disk, memory + weight_bytes + _index_bytes(corpus, tokens) + _INTERPRET_BYTES)


def check_needs(kind: JobKind, needs: Needs, folder: Path, *, promised_bytes: int, device_free: int = 0) -> None:
    """Check that the disk and the memory have room for a job.

    Args:
        kind: The kind of job, for the error.
        needs: What the job takes.
        folder: Folder of the job's files.
        promised_bytes: Disk space that other jobs may still fill.
        device_free: Free memory of the model's device.

    Raises:
        InvalidRequestError: they have not; the message gives both numbers.
    """
    free = _free_disk(folder) - promised_bytes
    if needs.disk > free:
        param, advice = _DISK_ADVICE[kind]
        promised = f" and {_size(promised_bytes)} are kept for other jobs" if promised_bytes else ""
        message = (
            f"{_NAMES[kind]} needs up to {_size(needs.disk)} on the disk of the dictionaries, where "
            f"{_size(max(free, 0))} are free{promised}. {advice}"
        )
        raise InvalidRequestError(message, param=param, code="insufficient_disk_space")
    memories = (
        (needs.memory, psutil.virtual_memory().available, "of memory", "are free"),
        (needs.device_memory, device_free, "of the device's memory", "are free beside the server"),
    )
    for needed, available, where, are_free in memories:
        if needed > available:
            param, advice = _MEMORY_ADVICE[kind]
            message = f"{_NAMES[kind]} needs about {_size(needed)} {where}, and {_size(available)} {are_free}. {advice}"
            raise InvalidRequestError(message, param=param, code="insufficient_memory")


def check_trained_size(options: TrainOptions, widths: Mapping[str, int], max_dictionary_bytes: int) -> None:
    """Check that the server could load the dictionaries of a training run at hook points of these widths.

    Raises:
        InvalidRequestError: one is larger than `max_dictionary_bytes`.
    """
    largest = max(_weight_bytes(dictionary, widths) for dictionary in options.dictionaries)
    if largest > max_dictionary_bytes:
        message = (
            f"A dictionary of {_size(largest)} is over max_dictionary_bytes ({_size(max_dictionary_bytes)}), the "
            "largest that this server loads. Send a smaller d_sae."
        )
        raise InvalidRequestError(message, param="d_sae")


def disk_shortage(spec: JobSpec, folder: Path) -> str | None:
    """Say how much disk space a job that is about to start lacks; None if it lacks nothing."""
    free = _free_disk(folder)
    if spec.disk_bytes <= free:
        return None
    return (
        f"The job needs up to {_size(spec.disk_bytes)} on the disk of the dictionaries, where {_size(max(free, 0))} "
        "are free now. Free some of the disk, and send the request again."
    )


def _weight_bytes(dictionary: DictionaryOptions, widths: Mapping[str, int]) -> int:
    """Return the size of the encoder and the decoder."""
    return 2 * widths[dictionary.hook] * dictionary.d_sae * _FLOAT32_BYTES


def _index_bytes(corpus: Sequence[str], tokens: int) -> int:
    """Return the memory for the index of a job's text.

    Raises:
        InvalidRequestError: its files are larger than one job reads.
    """
    paths = [Path(entry) for entry in corpus if is_local(entry)]
    files = [file for path in paths for file in (path.rglob("*") if path.is_dir() else (path,))]
    size = sum(file.stat().st_size for file in files if file.suffix.lower() in SUFFIXES and file.is_file())
    if size > MAX_CORPUS_BYTES:
        message = (
            f"The corpus has {_size(size)} of text, and one job reads at most {_size(MAX_CORPUS_BYTES)}. Send a "
            "folder with a part of it."
        )
        raise InvalidRequestError(message, param="corpus")
    return int((size + _made_text_bytes(corpus, tokens)) * _INDEX_SHARE)


def _made_text_bytes(corpus: Sequence[str], tokens: int) -> int:
    """Return the size of the text that must be fetched or written first."""
    return 0 if all(map(is_local, corpus)) else tokens * _TEXT_BYTES_PER_TOKEN


def _free_disk(folder: Path) -> int:
    """Return the free space on the disk that holds the folder, or will hold it, less the margin."""
    existing = next((path for path in (folder, *folder.parents) if path.exists()), Path.cwd())
    return shutil.disk_usage(existing).free - _DISK_MARGIN_BYTES


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 10**8 else f"{num_bytes / 1e6:.1f} MB"
