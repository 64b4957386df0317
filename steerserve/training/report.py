"""The report beside a dictionary: the text and options of its training, and how much of the model it keeps."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from steerserve.core.files import write_json, write_text
from steerserve.dictionaries.report_page import render_report

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from steerserve.training.evaluate import FeatureMetrics, SpliceMetrics

REPORT_FILE = "report.json"
PAGE_FILE = "report.html"
_LIBRARIES = ("steerserve", "torch", "transformers", "transformer-lens", "sae-lens")


@dataclass(frozen=True, slots=True)
class TrainingFacts:
    """Facts about the training run."""

    tokens: int
    """Number of different tokens."""
    sinks_left_out: int
    epochs: int
    steps: int
    batch_size: int
    lr: float
    k: int
    l1_coefficient: float
    resampled: int
    """Number of dead features that were resampled; a feature counts each time."""
    seed: int
    context_size: int
    storage: str
    together_with: Sequence[str]
    """Ids of the other dictionaries that the same run trained."""
    wall_time_s: float
    """Duration of all calls of a run that was stopped and resumed, except those that were killed."""
    corpus_sha256: str
    options_sha256: str
    sources: Mapping[str, int]
    """Number of documents by file."""
    heldout_documents: int


@dataclass(frozen=True, slots=True)
class DictionaryReport:
    """The content of `report.json`."""

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
    training: TrainingFacts
    history: Mapping[str, Any]
    """The curves, as `History.as_json` returns them."""

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON: the headline figures first, then everything."""
        return {**headline(self.heldout, self.features), **asdict(self), "versions": library_versions()}


def headline(heldout: SpliceMetrics, features: FeatureMetrics) -> dict[str, float]:
    """Return the most important figures of a report."""
    return {
        "ce_recovered": heldout.ce_recovered,
        "explained_variance": heldout.explained_variance,
        "kl": heldout.kl,
        "l0": heldout.l0,
        "dead_fraction": features.dead_fraction,
        "dense_fraction": features.dense_fraction,
    }


def save_report(report: Mapping[str, Any], folder: Path) -> None:
    """Write `report.html` and `report.json`. The latter is the last of a dictionary's files: then all are complete."""
    content = _rounded(report)
    write_text(folder / PAGE_FILE, render_report(content))
    write_json(folder / REPORT_FILE, content)


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that a dictionary's weights and figures depend on."""
    return {name: _version(name) for name in _LIBRARIES}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed as a package"


def _rounded(content: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _rounded(value) if isinstance(value, dict) else round(value, 6) if isinstance(value, float) else value
        for key, value in content.items()
    }
