"""Options of an interpretation: frozen data, checked when it is made. No torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from steerserve.core.config import DEFAULT_MODEL, Backend
from steerserve.core.errors import ConfigError
from steerserve.core.literals import DEFAULT_INTERPRET_TOKENS, MAX_INTERPRET_TOKENS
from steerserve.store.records import STORES_FOLDER
from steerserve.text.sample import SAMPLE, sample_dir

if TYPE_CHECKING:
    from collections.abc import Mapping

_MIN_CONTEXT = 16


@dataclass(frozen=True, slots=True)
class InterpretedSource:
    """One dictionary to interpret."""

    id: str
    """Name of the dictionary in this run."""
    source: str
    """Source of the dictionary, such as `path:FOLDER`."""
    sha256: str | None = None
    """SHA-256 that its weights file must have; None for any."""
    force: bool = False
    """Whether to accept a dictionary that was made for a model of another name."""


@dataclass(frozen=True, slots=True)
class InterpretOptions:
    """Options of one scan of a text that interprets one dictionary or several.

    Raises:
        ConfigError: a value is not allowed; `param` names it.
    """

    dictionaries: tuple[InterpretedSource, ...]
    corpus: tuple[str, ...]
    """Folders, files (.txt, .md, .jsonl), `hf:NAME`, `sample` or `self`."""
    dictionary_dirs: tuple[Path, ...]
    """Configured folders. The first one keeps stores that are not beside a dictionary, and unfinished runs."""
    allowed_dirs: tuple[Path, ...]
    """Folders that `path:` sources must lie in."""
    max_dictionary_bytes: int
    corpus_dirs: tuple[Path, ...] | None = None
    """Folders that files of the corpus must lie in, links followed; None for any folder."""
    prepared: tuple[str, ...] = ()
    """Files that replace the corpus if it had to be downloaded or written first."""
    model: str = DEFAULT_MODEL
    trust_remote_code: bool = False
    """Run Python code that the model's repository brings."""
    tokens: int = DEFAULT_INTERPRET_TOKENS
    """Number of tokens to read, without special tokens; fewer if the corpus is shorter."""
    context_size: int = 128
    """Tokens of a context window."""
    seed: int = 0
    """Seed of text that the model writes, and of the order of a data set."""
    device: str = "auto"
    """Device that runs the model: `auto`, `cpu` or `cuda`."""
    dtype: str = "auto"
    """Number format in which the model computes."""
    backend: Backend = "bridge"
    """Backend that runs the model."""
    process_weights: bool = True
    """Whether a HookedTransformer folds its norms and centres its weights."""
    calibrate: bool = True
    """Whether to measure doses and output scores too."""

    def __post_init__(self) -> None:
        """Check every value."""
        ids = [dictionary.id for dictionary in self.dictionaries]
        _check(bool(ids), "dictionaries", ids, "at least one")
        _check(len(set(ids)) == len(ids), "dictionaries", ids, "different for each dictionary")
        _check(bool(self.corpus), "corpus", self.corpus, "at least one folder or file")
        _check(self.backend in get_args(Backend), "backend", self.backend, f"one of {', '.join(get_args(Backend))}")
        _check(1 <= self.tokens <= MAX_INTERPRET_TOKENS, "tokens", self.tokens, f"1 to {MAX_INTERPRET_TOKENS}")
        _check(self.context_size >= _MIN_CONTEXT, "context_size", self.context_size, f"{_MIN_CONTEXT} or more")

    @property
    def model_dtype(self) -> str:
        """Number format in which the model computes."""
        return self.dtype

    @property
    def run_dir(self) -> Path:
        """Folder for the state of an unfinished run; the same for the same dictionaries."""
        names = json.dumps(sorted((dictionary.id, dictionary.source) for dictionary in self.dictionaries))
        return self._folder / f"run-{hashlib.sha256(names.encode()).hexdigest()[:16]}"

    @property
    def text_dir(self) -> Path:
        """Folder for text that is downloaded or written first; it is kept, since it took time."""
        return self._folder / "corpus"

    @property
    def text_dirs(self) -> tuple[Path, ...] | None:
        """The folders that text may lie in, those for text that was fetched or written included; None: any folder."""
        if self.corpus_dirs is None:
            return None
        return (*self.corpus_dirs, self.text_dir, *((sample_dir(),) if SAMPLE in self.corpus else ()))

    def what_shapes_the_result(self) -> dict[str, Any]:
        """Return the options that shape the result: a resumed run must have the same as the interrupted one."""
        names = ["model", "tokens", "context_size", "seed", "dtype"]
        if self.backend != "bridge":  # left out otherwise, so that runs from before there was a choice go on
            names += ["backend", "process_weights"]
        return {name: getattr(self, name) for name in names}

    def to_json(self) -> dict[str, Any]:
        """Return the options as JSON, which `from_json` reads."""
        folders = {name: [str(path) for path in getattr(self, name)] for name in ("dictionary_dirs", "allowed_dirs")}
        corpus_dirs = None if self.corpus_dirs is None else [str(path) for path in self.corpus_dirs]
        return {**asdict(self), **folders, "corpus_dirs": corpus_dirs}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> InterpretOptions:
        """Return the options that `to_json` wrote.

        Raises:
            ConfigError: a value is not allowed.
        """
        corpus_dirs = content.get("corpus_dirs")
        return cls(
            **{
                **content,
                "dictionaries": tuple(InterpretedSource(**source) for source in content["dictionaries"]),
                "corpus": tuple(content["corpus"]),
                "corpus_dirs": None if corpus_dirs is None else tuple(Path(folder) for folder in corpus_dirs),
                "prepared": tuple(content["prepared"]),
                "dictionary_dirs": tuple(Path(folder) for folder in content["dictionary_dirs"]),
                "allowed_dirs": tuple(Path(folder) for folder in content["allowed_dirs"]),
            }
        )

    @property
    def _folder(self) -> Path:
        return self.dictionary_dirs[0] / STORES_FOLDER


def _check(ok: bool, name: str, value: object, allowed: str) -> None:  # noqa: FBT001 reads as the sentence it checks
    if not ok:
        message = f"{name} is {value!r}; it must be {allowed}."
        raise ConfigError(message, param=name)
