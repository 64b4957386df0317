"""What a training run is asked to do. Frozen data, checked where it is made; no torch."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from steerserve.core.config import DEFAULT_MODEL, Backend
from steerserve.core.errors import ConfigError
from steerserve.core.literals import ARCHITECTURES, SAVED_DTYPES, STORAGES, Architecture, SavedDtype, Storage
from steerserve.text.sample import SAMPLE, sample_dir

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DEFAULT_HOOK = "blocks.17.hook_resid_post"
DEFAULT_L1: Mapping[str, float] = {"standard": 5.0, "gated": 5.0, "jumprelu": 5.0}
"""Weights of the sparsity penalty on activations scaled to the norm sqrt(d_in); a TopK has none."""
DEFAULT_RESAMPLE = (0.25, 0.4, 0.55, 0.7)
"""Shares of the run after which dead features are resampled. Source: training.md, after Bricken et al. 2023."""
RESAMPLED_BY_DEFAULT = frozenset({"standard", "gated"})
"""The others have remedies of their own against dead features (AuxK, the pre-activation loss)."""
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HOOK = re.compile(r"blocks\.(\d+)\.(?:attn\.)?hook_(\w+)")
_MIN_CONTEXT = 16
_LEAST_ROWS = 16
"""A mean over fewer activations says nothing."""
_LONG_TEXT = 200_000
_BATCH_SIZES = (2048, 1024, 512)
_ENOUGH_STEPS = 500
"""Smaller batches make more of a short text: 60,000 tokens at 512 for 3 epochs beat 2048 for 6 in half the time."""
_LEAST_HELDOUT, _MOST_HELDOUT = 2048, 16_384


@dataclass(frozen=True, slots=True)
class DictionaryOptions:
    """One dictionary to train.

    Raises:
        ConfigError: a value that no training can honour; `param` names it.
    """

    id: str
    """The name that the server will know the dictionary by."""
    hook: str = DEFAULT_HOOK
    architecture: Architecture = "batchtopk"
    d_sae: int = 4096
    k: int = 32
    """Active features a token; read by the TopK family and matching pursuit alone."""
    l1_coefficient: float | None = None
    """Weight of the sparsity penalty; read by standard, gated and jumprelu alone. None: the architecture's own."""
    lr: float = 8e-4
    resample: tuple[float, ...] | None = None
    """Shares of the run after which dead features are resampled; () is never, None the architecture's own."""
    dtype: SavedDtype = "float32"
    """Of the saved weights; training itself is in float32."""

    def __post_init__(self) -> None:
        """Check every value."""
        _check(bool(_ID.fullmatch(self.id)), "id", self.id, "1 to 64 letters, digits, '.', '_' and '-'")
        _check(bool(_HOOK.fullmatch(self.hook)), "hook", self.hook, "a hook point such as blocks.17.hook_resid_post")
        _check_choice(self.architecture, "architecture", ARCHITECTURES)
        _check_choice(self.dtype, "dtype", SAVED_DTYPES)
        _check(self.d_sae >= 1, "d_sae", self.d_sae, "1 or more")
        _check(1 <= self.k <= self.d_sae, "k", self.k, f"1 to d_sae ({self.d_sae})")
        _check(0 < self.lr < 1, "lr", self.lr, "a number between 0 and 1")
        _check(
            self.l1_coefficient is None or 0 <= self.l1_coefficient < math.inf,
            "l1_coefficient",
            self.l1_coefficient,
            "a finite number, 0 or more",
        )
        shares = self.resample or ()
        _check(all(0 < share < 1 for share in shares), "resample", self.resample, "shares of the run between 0 and 1")

    @property
    def sparsity(self) -> float:
        """The weight of the sparsity penalty, the architecture's own where none was given."""
        return DEFAULT_L1.get(self.architecture, 0.0) if self.l1_coefficient is None else self.l1_coefficient

    @property
    def resampling(self) -> tuple[float, ...]:
        """The shares of the run after which dead features are resampled."""
        if self.resample is not None:
            return self.resample
        return DEFAULT_RESAMPLE if self.architecture in RESAMPLED_BY_DEFAULT else ()


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """One pass over a text that trains one dictionary or several.

    Raises:
        ConfigError: a value that no training can honour; `param` names it.
    """

    out: Path
    """The folder of the result: of the one dictionary itself, or with a folder for each of several."""
    corpus: tuple[str, ...]
    """Folders, files (.txt, .md, .jsonl), `hf:NAME`, `sample` or `self`."""
    dictionaries: tuple[DictionaryOptions, ...]
    corpus_dirs: tuple[Path, ...] | None = None
    """Files of the corpus must lie within one of these folders, links followed; None: wherever they are."""
    prepared: tuple[str, ...] = ()
    """Files that stand for the corpus, where it had to be fetched or written first."""
    model: str = DEFAULT_MODEL
    model_dtype: str = "auto"
    """In which the model computes."""
    backend: Backend = "bridge"
    """What runs the model."""
    process_weights: bool = True
    """Whether a HookedTransformer gets its norms folded and its weights centred."""
    trust_remote_code: bool = False
    """Run Python code that the model's repository brings."""
    tokens: int = 1_000_000
    """Tokens whose activations are kept; fewer if the corpus has fewer."""
    epochs: int | None = None
    """How often each of them is seen; None: 6 times from the disk (3 times a short text), once through the buffer."""
    batch_size: int | None = None
    """Tokens a step; None: 2048, and fewer where a run would have few steps, down to 512."""
    seed: int = 0
    context_size: int = 128
    device: str = "auto"
    storage: Storage = "disk"
    """`disk` keeps all activations of the text; `buffer` some of them, in memory, and computes each epoch anew."""
    buffer_mb: int = 512
    """Bound of the buffer, for all hook points together."""
    heldout_tokens: int | None = None
    """Tokens of documents never trained on that the report is measured on; None: a twentieth, at most 16,384."""
    checkpoint_every: int = 250
    """Steps between checkpoints."""
    keep_run: bool = False
    """Keep the cached activations and the checkpoint (`OUT/run`) when done."""

    def __post_init__(self) -> None:
        """Check every value."""
        _check(bool(self.corpus), "corpus", self.corpus, "at least one folder or file")
        _check(bool(self.dictionaries), "dictionaries", self.dictionaries, "at least one dictionary")
        ids = [dictionary.id for dictionary in self.dictionaries]
        _check(len(set(ids)) == len(ids), "id", ids, "different for each dictionary")
        _check_choice(self.storage, "storage", STORAGES)
        _check_choice(self.backend, "backend", get_args(Backend))
        for name in ("epochs", "buffer_mb", "heldout_tokens", "checkpoint_every"):
            value = getattr(self, name)
            _check(value is None or value >= 1, name, value, "1 or more")
        for name in ("tokens", "batch_size"):
            value = getattr(self, name)
            _check(value is None or value >= _LEAST_ROWS, name, value, f"{_LEAST_ROWS} or more")
        _check(0 <= self.seed < 1 << 63, "seed", self.seed, "0 to 2**63 - 1")
        _check(self.context_size >= _MIN_CONTEXT, "context_size", self.context_size, f"{_MIN_CONTEXT} or more")

    @property
    def run_dir(self) -> Path:
        """The folder that holds what a killed run needs to go on."""
        return self.out / "run"

    @property
    def text_dir(self) -> Path:
        """The folder for text that must be fetched or written first."""
        return self.run_dir / "corpus"

    @property
    def text_dirs(self) -> tuple[Path, ...] | None:
        """The folders that text may lie in, those for text that was fetched or written included; None: any folder."""
        if self.corpus_dirs is None:
            return None
        return (*self.corpus_dirs, self.text_dir, *((sample_dir(),) if SAMPLE in self.corpus else ()))

    @property
    def num_epochs(self) -> int:
        """How often each token is seen."""
        if self.epochs is not None:
            return self.epochs
        return 1 if self.storage == "buffer" else 6 if self.tokens >= _LONG_TEXT else 3

    @property
    def tokens_a_step(self) -> int:
        """Tokens of a batch."""
        if self.batch_size is not None:
            return self.batch_size
        seen = self.tokens * self.num_epochs
        return next((size for size in _BATCH_SIZES if seen >= size * _ENOUGH_STEPS), _BATCH_SIZES[-1])

    @property
    def num_heldout_tokens(self) -> int:
        """Tokens that the report is measured on."""
        return self.heldout_tokens or min(max(self.tokens // 20, _LEAST_HELDOUT), _MOST_HELDOUT)

    @property
    def hooks(self) -> tuple[str, ...]:
        """The hook points that are read, each once."""
        return tuple(dict.fromkeys(dictionary.hook for dictionary in self.dictionaries))

    def folder(self, dictionary: DictionaryOptions) -> Path:
        """Return the folder that gets the dictionary's weights, configuration and report."""
        return self.out if len(self.dictionaries) == 1 else self.out / dictionary.id

    def what_shapes_the_result(self) -> dict[str, Any]:
        """Return the values that an interrupted run must share with the one that goes on."""
        aside = {"out", "corpus", "prepared", "device", "heldout_tokens", "checkpoint_every", "keep_run"}
        aside |= {"trust_remote_code", "corpus_dirs"}
        # Runs from before there was a choice go on.
        if self.model_dtype == "auto":
            aside |= {"model_dtype"}
        if self.backend == "bridge":
            aside |= {"backend", "process_weights"}
        return {name: value for name, value in asdict(self).items() if name not in aside}

    @property
    def sha256(self) -> str:
        """Names a run: the same for the same options and corpus, wherever the result goes."""
        shaping = {**self.what_shapes_the_result(), "corpus": self.corpus}
        return hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Return the options as JSON, which `from_json` reads."""
        folders = None if self.corpus_dirs is None else [str(folder) for folder in self.corpus_dirs]
        return {**asdict(self), "out": str(self.out), "corpus_dirs": folders}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TrainOptions:
        """Read what `to_json` wrote."""
        dictionaries = (
            DictionaryOptions(**{**one, "resample": None if one["resample"] is None else tuple(one["resample"])})
            for one in value["dictionaries"]
        )
        read = {"out": Path(value["out"]), "corpus": tuple(value["corpus"])}
        read |= {"dictionaries": tuple(dictionaries), "prepared": tuple(value["prepared"])}
        if (folders := value.get("corpus_dirs")) is not None:
            read["corpus_dirs"] = tuple(Path(folder) for folder in folders)
        return cls(**{**value, **read})


@dataclass(frozen=True, slots=True)
class Grid:
    """The dictionaries of one run: every hook point with every width."""

    id: str
    hooks: Sequence[str] = (DEFAULT_HOOK,)
    widths: Sequence[int] = (4096,)
    shared: Mapping[str, Any] = field(default_factory=dict)
    """The other options of each."""

    def dictionaries(self) -> tuple[DictionaryOptions, ...]:
        """Return the dictionaries: `id` itself where there is one, else `id` with what tells them apart.

        Raises:
            ConfigError: a value that no training can honour; `param` names it.
        """
        hooks, widths = tuple(dict.fromkeys(self.hooks)), tuple(dict.fromkeys(self.widths))
        return tuple(
            DictionaryOptions(
                id="-".join(
                    [self.id, *([_short(hook)] if len(hooks) > 1 else []), *([str(width)] if len(widths) > 1 else [])]
                ),
                hook=hook,
                d_sae=width,
                **self.shared,
            )
            for hook, width in itertools.product(hooks, widths)
        )


def _short(hook: str) -> str:
    """Shorten `blocks.17.hook_resid_post` to `17.resid_post`."""
    found = _HOOK.fullmatch(hook)
    _check(found is not None, "hook", hook, "a hook point such as blocks.17.hook_resid_post")
    return ".".join(found.groups()) if found else hook


def _check_choice(value: str, name: str, choices: Sequence[str]) -> None:
    _check(value in choices, name, value, f"one of {', '.join(choices)}")


def _check(ok: bool, name: str, value: object, allowed: str) -> None:  # noqa: FBT001 reads as the sentence it checks
    if not ok:
        message = f"{name} is {value!r}; it must be {allowed}."
        raise ConfigError(message, param=name)
