"""What a training run is asked to do. Frozen data, checked where it is made; no torch."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from steerserve.core.errors import ConfigError

Architecture = Literal["batchtopk", "topk", "standard", "jumprelu", "gated"]
SavedDtype = Literal["float32", "float16"]
ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)
SAVED_DTYPES: tuple[SavedDtype, ...] = get_args(SavedDtype)
DEFAULT_L1: dict[str, float] = {"standard": 5.0, "gated": 5.0, "jumprelu": 5.0}
"""Weights of the sparsity penalty on activations scaled to the norm sqrt(d_in); a TopK has none."""
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HOOK = re.compile(r"blocks\.\d+\.hook_resid_(pre|post)")
_MIN_CONTEXT = 16


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """One dictionary to train.

    Raises:
        ConfigError: a value that no training can honour; `param` names it.
    """

    id: str
    """The name that the server will know the dictionary by."""
    out: Path
    """The folder that gets `sae_weights.safetensors`, `cfg.json` and `report.json`."""
    corpus: tuple[Path, ...]
    """Folders or files (.txt, .md, .jsonl)."""
    model: str = "smollm2-135m-instruct"
    hook: str = "blocks.17.hook_resid_post"
    architecture: Architecture = "batchtopk"
    d_sae: int = 4096
    k: int = 32
    """Active features a token; read by the TopK family alone."""
    l1_coefficient: float | None = None
    """Weight of the sparsity penalty; read by standard, gated and jumprelu alone. None: the architecture's own."""
    tokens: int = 1_000_000
    """Tokens whose activations are kept; fewer if the corpus has fewer."""
    epochs: int = 6
    """How often each of them is seen."""
    batch_size: int = 2048
    lr: float = 8e-4
    seed: int = 0
    context_size: int = 128
    dtype: SavedDtype = "float32"
    """Of the saved weights; training itself is in float32."""
    device: str = "auto"
    heldout_tokens: int = 16_384
    """Tokens of documents never trained on that the report is measured on."""
    checkpoint_every: int = 250
    """Steps between checkpoints."""
    keep_run: bool = False
    """Keep the cached activations and the checkpoint (`OUT/run`) when done."""

    def __post_init__(self) -> None:
        """Check every value."""
        _check(bool(_ID.fullmatch(self.id)), "id", self.id, "letters, digits, '.', '_' and '-'")
        _check(
            bool(_HOOK.fullmatch(self.hook)), "hook", self.hook, "blocks.N.hook_resid_pre or blocks.N.hook_resid_post"
        )
        _check(
            self.architecture in ARCHITECTURES, "architecture", self.architecture, f"one of {', '.join(ARCHITECTURES)}"
        )
        _check(self.dtype in SAVED_DTYPES, "dtype", self.dtype, f"one of {', '.join(SAVED_DTYPES)}")
        _check(bool(self.corpus), "corpus", self.corpus, "at least one folder or file")
        for name in ("d_sae", "k", "tokens", "epochs", "batch_size", "heldout_tokens", "checkpoint_every"):
            _check(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        _check(self.k <= self.d_sae, "k", self.k, f"at most d_sae ({self.d_sae})")
        _check(self.context_size >= _MIN_CONTEXT, "context_size", self.context_size, f"{_MIN_CONTEXT} or more")
        _check(0 < self.lr < 1, "lr", self.lr, "a number between 0 and 1")
        _check(
            self.l1_coefficient is None or self.l1_coefficient >= 0, "l1_coefficient", self.l1_coefficient, "0 or more"
        )

    @property
    def run_dir(self) -> Path:
        """The folder that holds what a killed run needs to go on."""
        return self.out / "run"

    @property
    def sparsity(self) -> float:
        """The weight of the sparsity penalty, the architecture's own where none was given."""
        return DEFAULT_L1.get(self.architecture, 0.0) if self.l1_coefficient is None else self.l1_coefficient

    def what_shapes_the_result(self) -> dict[str, Any]:
        """Return the values that an interrupted run must share with the one that goes on."""
        aside = {"out", "corpus", "device", "heldout_tokens", "checkpoint_every", "keep_run", "dtype", "id"}
        return {name: value for name, value in asdict(self).items() if name not in aside}


OPTION_NAMES: tuple[str, ...] = tuple(field.name for field in fields(TrainOptions))


def _check(ok: bool, name: str, value: object, allowed: str) -> None:  # noqa: FBT001 reads as the sentence it checks
    if not ok:
        message = f"{name} is {value!r}; it must be {allowed}."
        raise ConfigError(message, param=name)
