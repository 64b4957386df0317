"""Closed sets of words, and limits, that requests, files, jobs and the command line share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Architecture = Literal[
    "batchtopk", "topk", "standard", "jumprelu", "gated", "matryoshka_batchtopk", "abstopk", "matching_pursuit"
]
"""Dictionary architectures that can be trained, by SAELens' names."""
ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)
SavedDtype = Literal["float32", "float16"]
"""Number formats in which a trained dictionary can be saved."""
SAVED_DTYPES: tuple[SavedDtype, ...] = get_args(SavedDtype)
Storage = Literal["disk", "buffer"]
"""How a training run keeps activations: all on disk, or some of them in memory."""
STORAGES: tuple[Storage, ...] = get_args(Storage)

JobKind = Literal["train", "interpret"]
JobState = Literal["queued", "running", "done", "failed", "cancelled"]
JOB_STATES: tuple[JobState, ...] = get_args(JobState)
JobEventType = Literal["state", "progress", "log"]

LabelOrigin = Literal["person", "llm", "neuronpedia", "promoted", "peak", "words"]
"""Who made a label; `promoted`, `peak` and `words` are the automatic origins."""
LABEL_ORIGINS: tuple[LabelOrigin, ...] = ("person", "llm", "neuronpedia", "peak", "promoted", "words")
"""Label origins in the order in which they win: a person's label always, an automatic one last."""
Role = Literal["writes", "reads"]
"""Whether pushing a feature makes its own promoted tokens appear (`writes`) or not (`reads`)."""

Pooling = Literal["mean", "last"]
"""Tokens of a text that a difference of means uses: all but special tokens and attention sinks, or only the last."""
MIN_TEXTS = 2
"""Smallest number of different texts in each set of a contrast: one to learn from, one to test on."""
VECTOR_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""Pattern of the name of a stored steering vector."""

DEFAULT_INTERPRET_TOKENS = 200_000
MAX_INTERPRET_TOKENS = 10**9
"""Most tokens that one interpretation reads: histogram bins count in 32 bits."""


@dataclass(frozen=True, slots=True)
class Words:
    """What a format calls its types, each with its article."""

    string: str
    integer: str
    number: str
    boolean: str
    array: str
    mapping: str
    entry: str
    """An item of an array, without an article; its plural ends in s or ies."""


JSON_WORDS = Words("a string", "an integer", "a number", "a boolean", "an array", "an object", "entry")
YAML_WORDS = Words(
    "text", "a whole number", "a number", "true or false", "a list", "a mapping of names to values", "item"
)
