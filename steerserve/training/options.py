"""The options of a training run: frozen data that is checked when it is made. Loads no torch."""

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
"""Weights of the sparsity penalty on activations scaled to the norm sqrt(d_in); the other architectures have none."""
DEFAULT_RESAMPLE = (0.25, 0.4, 0.55, 0.7)
"""Shares of the run after which dead features are resampled. Source: docs/training.md, "How it trains"."""
RESAMPLED_BY_DEFAULT = frozenset({"standard", "gated"})
"""Architectures without a remedy of their own against dead features, such as AuxK or a pre-activation loss."""
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HOOK = re.compile(r"blocks\.(\d+)\.(?:attn\.)?hook_(\w+)")
_MIN_CONTEXT = 16
_LEAST_ROWS = 16
"""Least number of tokens, in all and in a batch: a mean over fewer activations says nothing."""
_LONG_TEXT = 200_000
"""Number of tokens from which on six epochs are the default, below it three."""
_BATCH_SIZES = (2048, 1024, 512)
_ENOUGH_STEPS = 500
"""Steps from which on a larger batch is taken: 60,000 tokens at 512 for 3 epochs beat 2048 for 6, in half the time."""
_LEAST_HELDOUT, _MOST_HELDOUT = 2048, 16_384


@dataclass(frozen=True, slots=True)
class DictionaryOptions:
    """One dictionary to train.

    Raises:
        ConfigError: a value is out of range; `param` names it.
    """

    id: str
    """The name under which the server loads the dictionary."""
    hook: str = DEFAULT_HOOK
    architecture: Architecture = "batchtopk"
    d_sae: int = 4096
    k: int = 32
    """Number of active features a token; only the TopK family and matching pursuit use it."""
    l1_coefficient: float | None = None
    """Weight of the sparsity penalty; only standard, gated and jumprelu use it. None for the architecture's default."""
    lr: float = 8e-4
    resample: tuple[float, ...] | None = None
    """Shares of the run after which dead features are resampled; () for never, None for the architecture's default."""
    dtype: SavedDtype = "float32"
    """Number format of the saved weights; training itself is in float32."""

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
        """Weight of the sparsity penalty, the architecture's default if none was given."""
        return DEFAULT_L1.get(self.architecture, 0.0) if self.l1_coefficient is None else self.l1_coefficient

    @property
    def resampling(self) -> tuple[float, ...]:
        """Shares of the run after which dead features are resampled."""
        if self.resample is not None:
            return self.resample
        return DEFAULT_RESAMPLE if self.architecture in RESAMPLED_BY_DEFAULT else ()


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """One pass over a text that trains one dictionary or several.

    Raises:
        ConfigError: a value is out of range; `param` names it.
    """

    out: Path
    """Folder for the result: one dictionary lies in it directly, several lie in a folder each below it."""
    corpus: tuple[str, ...]
    """Folders, files (.txt, .md, .jsonl), `hf:NAME`, `sample` or `self`."""
    dictionaries: tuple[DictionaryOptions, ...]
    corpus_dirs: tuple[Path, ...] | None = None
    """Folders within which the corpus's files must lie, links followed. None if they may lie anywhere."""
    prepared: tuple[str, ...] = ()
    """The corpus as folders and files, with the text that was fetched or written. Empty if `corpus` is read itself."""
    model: str = DEFAULT_MODEL
    model_dtype: str = "auto"
    """Number format in which the model computes."""
    backend: Backend = "bridge"
    """Implementation that runs the model."""
    process_weights: bool = True
    """Whether a HookedTransformer gets its norms folded and its weights centred."""
    trust_remote_code: bool = False
    """Whether Python code in the model's repository may be run."""
    tokens: int = 1_000_000
    """Number of tokens to train on; fewer if the corpus has fewer."""
    epochs: int | None = None
    """Number of times that each token is used. None for 6 from the disk (3 for a short text), 1 with the buffer."""
    batch_size: int | None = None
    """Number of tokens a step. None for 2048, or fewer (at least 512) if the run would have few steps."""
    seed: int = 0
    context_size: int = 128
    device: str = "auto"
    storage: Storage = "disk"
    """`disk` keeps all activations on disk; `buffer` keeps some in memory and computes them anew in each epoch."""
    buffer_mb: int = 512
    """Largest size of the buffer, for all hook points together."""
    heldout_tokens: int | None = None
    """Number of held-out tokens that the report is measured on. None for a twentieth of `tokens`, at most 16,384."""
    checkpoint_every: int = 250
    """Number of steps between two checkpoints."""
    keep_run: bool = False
    """Whether the cached activations and the checkpoint (`OUT/run`) are kept when the run has ended."""

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
        """Folder for everything that a stopped run needs to resume."""
        return self.out / "run"

    @property
    def text_dir(self) -> Path:
        """Folder for text that is fetched or written before the run."""
        return self.run_dir / "corpus"

    @property
    def text_dirs(self) -> tuple[Path, ...] | None:
        """Folders that text may lie in, those for text that is fetched or written included. None if any folder may."""
        if self.corpus_dirs is None:
            return None
        return (*self.corpus_dirs, self.text_dir, *((sample_dir(),) if SAMPLE in self.corpus else ()))

    @property
    def num_epochs(self) -> int:
        """Number of times that each token is used."""
        if self.epochs is not None:
            return self.epochs
        return 1 if self.storage == "buffer" else 6 if self.tokens >= _LONG_TEXT else 3

    @property
    def tokens_a_step(self) -> int:
        """Number of tokens in a batch."""
        if self.batch_size is not None:
            return self.batch_size
        seen = self.tokens * self.num_epochs
        return next((size for size in _BATCH_SIZES if seen >= size * _ENOUGH_STEPS), _BATCH_SIZES[-1])

    @property
    def num_heldout_tokens(self) -> int:
        """Number of held-out tokens that the report is measured on."""
        return self.heldout_tokens or min(max(self.tokens // 20, _LEAST_HELDOUT), _MOST_HELDOUT)

    @property
    def hooks(self) -> tuple[str, ...]:
        """The hook points of the dictionaries, each once."""
        return tuple(dict.fromkeys(dictionary.hook for dictionary in self.dictionaries))

    def folder(self, dictionary: DictionaryOptions) -> Path:
        """Return the folder for the dictionary's weights, configuration and report."""
        return self.out if len(self.dictionaries) == 1 else self.out / dictionary.id

    def what_shapes_the_result(self) -> dict[str, Any]:
        """Return the options that must be the same when a stopped run is resumed."""
        left_out = {"out", "corpus", "prepared", "device", "heldout_tokens", "checkpoint_every", "keep_run"}
        left_out |= {"trust_remote_code", "corpus_dirs"}
        # Runs of versions without these options can be resumed.
        if self.model_dtype == "auto":
            left_out |= {"model_dtype"}
        if self.backend == "bridge":
            left_out |= {"backend", "process_weights"}
        return {name: value for name, value in asdict(self).items() if name not in left_out}

    @property
    def sha256(self) -> str:
        """SHA-256 of the options that shape the result and of the corpus's names: the same run has the same one."""
        shaping = {**self.what_shapes_the_result(), "corpus": self.corpus}
        return hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Return the options as JSON, which `from_json` reads."""
        folders = None if self.corpus_dirs is None else [str(folder) for folder in self.corpus_dirs]
        return {**asdict(self), "out": str(self.out), "corpus_dirs": folders}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TrainOptions:
        """Read what `to_json` wrote."""
        dictionaries = tuple(
            DictionaryOptions(
                **{**fields, "resample": None if fields["resample"] is None else tuple(fields["resample"])}
            )
            for fields in value["dictionaries"]
        )
        folders = value.get("corpus_dirs")
        parsed = {
            "out": Path(value["out"]),
            "corpus": tuple(value["corpus"]),
            "dictionaries": dictionaries,
            "prepared": tuple(value["prepared"]),
            "corpus_dirs": None if folders is None else tuple(map(Path, folders)),
        }
        return cls(**{**value, **parsed})


@dataclass(frozen=True, slots=True)
class Grid:
    """The dictionaries of one run: one for every hook point and width."""

    id: str
    hooks: Sequence[str] = (DEFAULT_HOOK,)
    widths: Sequence[int] = (4096,)
    shared: Mapping[str, Any] = field(default_factory=dict)
    """The other options, which are the same for each dictionary."""

    def dictionaries(self) -> tuple[DictionaryOptions, ...]:
        """Return the dictionaries, named `id`, and behind it hook point and width if there are several of them.

        Raises:
            ConfigError: a value is out of range; `param` names it.
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
    match = _HOOK.fullmatch(hook)
    _check(match is not None, "hook", hook, "a hook point such as blocks.17.hook_resid_post")
    return ".".join(match.groups()) if match else hook


def _check_choice(value: str, name: str, choices: Sequence[str]) -> None:
    _check(value in choices, name, value, f"one of {', '.join(choices)}")


def _check(ok: bool, name: str, value: object, allowed: str) -> None:  # noqa: FBT001 reads as the sentence it checks
    if not ok:
        message = f"{name} is {value!r}; it must be {allowed}."
        raise ConfigError(message, param=name)
