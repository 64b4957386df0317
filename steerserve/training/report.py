"""The report beside a dictionary: what it was trained on, with what, and how much of the model it keeps."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from steerserve.training.files import write_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from steerserve.training.evaluate import FeatureMetrics, SpliceMetrics

_LIBRARIES = ("steerserve", "torch", "transformers", "transformer-lens", "sae-lens")


@dataclass(frozen=True, slots=True)
class Training:
    """The facts of the run itself."""

    tokens: int
    sinks_left_out: int
    epochs: int
    steps: int
    batch_size: int
    lr: float
    seed: int
    context_size: int
    wall_time_s: float
    """Of the call that finished the run; a run that was interrupted took longer."""
    corpus_sha256: str
    sources: Mapping[str, int]
    """Documents by file."""
    heldout_documents: int


@dataclass(frozen=True, slots=True)
class Report:
    """Everything in `report.json`."""

    id: str
    model: str
    hook: str
    architecture: str
    d_in: int
    d_sae: int
    dtype: str
    median_norm: float
    mean_norm: float
    heldout: SpliceMetrics
    features: FeatureMetrics
    training: Training

    def save(self, path: Path) -> None:
        """Write the report as JSON: the figures people ask for at the top, all of them below."""
        top = {
            "ce_recovered": self.heldout.ce_recovered,
            "explained_variance": self.heldout.explained_variance,
            "kl": self.heldout.kl,
            "l0": self.heldout.l0,
            "dead_fraction": self.features.dead_fraction,
            "dense_fraction": self.features.dense_fraction,
        }
        content = _rounded({**top, **asdict(self), "versions": library_versions()})
        write_json(path, content)


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that a dictionary's numbers depend on."""
    return {name: _version(name) for name in _LIBRARIES}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed as a package"


def _rounded(content: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _rounded(value) if isinstance(value, dict) else round(value, 6) if isinstance(value, float) else value
        for key, value in content.items()
    }
