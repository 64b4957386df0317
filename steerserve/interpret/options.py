"""What an interpretation is asked to do. Frozen data, checked where it is made; no torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from steerserve.core.config import DEFAULT_MODEL, Backend
from steerserve.core.errors import ConfigError
from steerserve.core.literals import DEFAULT_INTERPRET_TOKENS, MAX_INTERPRET_TOKENS
from steerserve.text.sample import SAMPLE, sample_dir

if TYPE_CHECKING:
    from collections.abc import Mapping

STORES_FOLDER = ".features"
"""In the first of the dictionary folders: what belongs to dictionaries that lie where nothing may be written."""
_MIN_CONTEXT = 16


@dataclass(frozen=True, slots=True)
class InterpretedSource:
    """One dictionary to interpret."""

    id: str
    source: str
    sha256: str | None = None
    """Of the weights that are meant; None: whatever is there."""
    force: bool = False
    """Take it also where it was made for a model of another name."""


@dataclass(frozen=True, slots=True)
class InterpretOptions:
    """One pass over a text that interprets one dictionary or several.

    Raises:
        ConfigError: a value that cannot be honoured; `param` names it.
    """

    dictionaries: tuple[InterpretedSource, ...]
    corpus: tuple[str, ...]
    """Folders, files (.txt, .md, .jsonl), `hf:NAME`, `sample` or `self`."""
    dictionary_dirs: tuple[Path, ...]
    """The first keeps what cannot lie beside a dictionary, and what a stopped run needs to go on."""
    allowed_dirs: tuple[Path, ...]
    """`path:` sources must lie within one of these folders."""
    max_dictionary_bytes: int
    corpus_dirs: tuple[Path, ...] | None = None
    """Files of the corpus must lie within one of these folders, links followed; None: wherever they are."""
    prepared: tuple[str, ...] = ()
    """Files that stand for the corpus, where it had to be fetched or written first."""
    model: str = DEFAULT_MODEL
    trust_remote_code: bool = False
    """Run Python code that the model's repository brings."""
    tokens: int = DEFAULT_INTERPRET_TOKENS
    """Tokens that are read, special ones not counted; fewer if the corpus has fewer."""
    context_size: int = 128
    seed: int = 0
    """Of text that the model writes, and of the order of a data set."""
    device: str = "auto"
    dtype: str = "auto"
    backend: Backend = "bridge"
    """What runs the model."""
    process_weights: bool = True
    """Whether a HookedTransformer gets its norms folded and its weights centred."""
    calibrate: bool = True
    """Measure doses and output scores too."""

    def __post_init__(self) -> None:
        """Check every value."""
        ids = [one.id for one in self.dictionaries]
        _check(bool(ids), "dictionaries", ids, "at least one")
        _check(len(set(ids)) == len(ids), "dictionaries", ids, "different for each dictionary")
        _check(bool(self.corpus), "corpus", self.corpus, "at least one folder or file")
        _check(self.backend in get_args(Backend), "backend", self.backend, f"one of {', '.join(get_args(Backend))}")
        _check(1 <= self.tokens <= MAX_INTERPRET_TOKENS, "tokens", self.tokens, f"1 to {MAX_INTERPRET_TOKENS}")
        _check(self.context_size >= _MIN_CONTEXT, "context_size", self.context_size, f"{_MIN_CONTEXT} or more")

    @property
    def model_dtype(self) -> str:
        """In which the model computes."""
        return self.dtype

    @property
    def run_dir(self) -> Path:
        """The folder that holds what a killed run needs to go on; the same for the same dictionaries."""
        named = json.dumps(sorted((one.id, one.source) for one in self.dictionaries))
        return self._folder / f"run-{hashlib.sha256(named.encode()).hexdigest()[:16]}"

    @property
    def text_dir(self) -> Path:
        """The folder for text that must be fetched or written first; it is kept, since it took time."""
        return self._folder / "corpus"

    @property
    def text_dirs(self) -> tuple[Path, ...] | None:
        """The folders that text may lie in, those for text that was fetched or written included; None: any folder."""
        if self.corpus_dirs is None:
            return None
        return (*self.corpus_dirs, self.text_dir, *((sample_dir(),) if SAMPLE in self.corpus else ()))

    def what_shapes_the_result(self) -> dict[str, Any]:
        """Return the values that an interrupted run must share with the one that goes on."""
        shared = ("model", "tokens", "context_size", "seed", "dtype")
        found = {name: getattr(self, name) for name in shared}
        if self.backend != "bridge":  # runs from before there was a choice go on
            found |= {"backend": self.backend, "process_weights": self.process_weights}
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the options as JSON, which `from_json` reads."""
        folders = {name: [str(path) for path in getattr(self, name)] for name in ("dictionary_dirs", "allowed_dirs")}
        corpus_dirs = None if self.corpus_dirs is None else [str(path) for path in self.corpus_dirs]
        return {**asdict(self), **folders, "corpus_dirs": corpus_dirs}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> InterpretOptions:
        """Read what `to_json` wrote.

        Raises:
            ConfigError: a value that cannot be honoured.
        """
        corpus_dirs = found.get("corpus_dirs")
        return cls(
            **{
                **found,
                "dictionaries": tuple(InterpretedSource(**one) for one in found["dictionaries"]),
                "corpus": tuple(found["corpus"]),
                "corpus_dirs": None if corpus_dirs is None else tuple(Path(folder) for folder in corpus_dirs),
                "prepared": tuple(found["prepared"]),
                "dictionary_dirs": tuple(Path(folder) for folder in found["dictionary_dirs"]),
                "allowed_dirs": tuple(Path(folder) for folder in found["allowed_dirs"]),
            }
        )

    @property
    def _folder(self) -> Path:
        return self.dictionary_dirs[0] / STORES_FOLDER


def _check(ok: bool, name: str, value: object, allowed: str) -> None:  # noqa: FBT001 reads as the sentence it checks
    if not ok:
        message = f"{name} is {value!r}; it must be {allowed}."
        raise ConfigError(message, param=name)
