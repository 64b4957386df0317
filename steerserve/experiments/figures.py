"""The figures of an experiment: each arm's mean metrics, and their differences from the first arm's."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from steerserve.experiments.statistics import ANY_NUMBER, LEVEL, NUM_RESAMPLES, SEED, estimate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from steerserve.experiments.samples import Record
    from steerserve.experiments.statistics import Estimate, Method

BROKEN_REPETITION = 0.2


@dataclass(frozen=True, slots=True)
class Metric:
    """One number that every sample has."""

    name: str
    title: str
    about: str
    """Definition of the metric, for readers of the report."""
    digits: int = 2
    """Number of decimals that are shown."""
    bounds: tuple[float, float] = (0.0, math.inf)
    """Smallest and largest value that a sample can have."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One metric of one arm."""

    mean: Estimate | None
    difference: Estimate | None
    """Mean of the paired differences from the first arm; None for the first arm itself."""


@dataclass(frozen=True, slots=True)
class Figures:
    """The summary of an experiment."""

    arms: tuple[str, ...]
    metrics: tuple[Metric, ...]
    cells: Mapping[tuple[str, str], Cell]
    """The figures by arm and metric."""
    num_samples: Mapping[str, int]
    num_prompts: int

    def cell(self, arm: str, metric: str) -> Cell:
        """Return one metric of one arm."""
        return self.cells[arm, metric]

    @property
    def method(self) -> Method | None:
        """How the intervals were made; None if there are no intervals."""
        methods = (cell.mean.method for cell in self.cells.values() if cell.mean is not None)
        return next((method for method in methods if method is not None), None)


METRICS = (
    Metric(
        "kl",
        "KL",
        "KL(steered || unsteered) along the text after the arm's own prompt, so 0 without edits; nats a token",
        3,
    ),
    Metric("surprise", "surprise", "negative log-likelihood of the text under the unsteered model, nats a token"),
    Metric(
        "repetition",
        "repetition",
        "share of 3-grams that repeat an earlier one; over 0.2 a text reads as broken",
        3,
        (0, 1),
    ),
    Metric(
        "relevance",
        "relevance",
        "how much likelier the prompt makes the text, unsteered, nats a token",
        bounds=ANY_NUMBER,
    ),
    Metric("broken", "broken", "share of texts whose repetition is over 0.2", bounds=(0, 1)),
    Metric("distinct_2", "distinct 2", "different 2-grams over all", 3, (0, 1)),
    Metric("kl_p95", "KL p95", "95th percentile of that divergence over the tokens of a text"),
    Metric("tokens", "tokens", "generated tokens", 1),
)


def summarise(records: Iterable[Record], arms: Sequence[str]) -> Figures:
    """Compute the figures of an experiment's samples.

    Pairs have one prompt, one seed and one sample index, and so the same noise.
    """
    rows: dict[str, dict[tuple[str, int], Record]] = {arm: {} for arm in arms}
    prompts: dict[str, str] = {}
    features: dict[str, None] = {}
    for record in records:
        rows[record["arm"]][record["key"], record["index"]] = record
        prompts[record["key"]] = repr(record["prompt"])
        features |= dict.fromkeys(feature_names(record))
    metrics = (
        *(Metric(name, name, "mean activation when the unsteered model reads the text", 2) for name in features),
        *METRICS,
    )
    cells: dict[tuple[str, str], Cell] = {}
    for metric in metrics:
        values = {arm: _values(samples, metric.name) for arm, samples in rows.items()}
        first = values[arms[0]]
        for arm in arms:
            own = values[arm]
            pairs = [pair for pair in own if pair in first]
            difference = estimate([own[pair] - first[pair] for pair in pairs], [prompts[key] for key, _ in pairs])
            mean = estimate(list(own.values()), [prompts[key] for key, _ in own], bounds=metric.bounds)
            cells[arm, metric.name] = Cell(mean, None if arm == arms[0] else difference)
    counts = {arm: len(samples) for arm, samples in rows.items()}
    return Figures(tuple(arms), metrics, cells, counts, len(set(prompts.values())))


def feature_names(record: Record) -> list[str]:
    """Return the features that were measured in a sample, as `res17/3857`."""
    measured = (record.get("metrics") or {}).get("features", {})
    return [f"{dictionary}/{feature}" for dictionary, acts in measured.items() for feature in acts]


def metric_value(record: Record, name: str) -> float | None:
    """Return one metric of a sample; None if the sample lacks it."""
    metrics = record.get("metrics") or {}
    value: object
    if (derived := _DERIVED.get(name)) is not None:
        value = derived(record)
    elif "/" in name:
        dictionary, _, feature = name.rpartition("/")
        value = metrics.get("features", {}).get(dictionary, {}).get(feature)
    else:
        value = metrics.get(name)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _broken(record: Record) -> float | None:
    repeated = (record.get("metrics") or {}).get("repetition")
    return None if repeated is None else float(repeated > BROKEN_REPETITION)


_DERIVED: dict[str, Callable[[Record], float | None]] = {
    "broken": _broken,
    "tokens": lambda record: record["usage"]["completion_tokens"],
}


def _values(samples: Mapping[tuple[str, int], Record], name: str) -> dict[tuple[str, int], float]:
    values = ((sample, metric_value(record, name)) for sample, record in samples.items())
    return {sample: value for sample, value in values if value is not None}


def figures_json(figures: Figures) -> dict[str, Any]:
    """Return the figures as JSON."""
    by_arm: dict[str, dict[str, Any]] = defaultdict(dict)
    for (arm, metric), cell in figures.cells.items():
        by_arm[arm][metric] = {
            "mean": asdict(cell.mean) if cell.mean is not None else None,
            "difference": asdict(cell.difference) if cell.difference is not None else None,
        }
    return {
        "first_arm": figures.arms[0],
        "intervals": _intervals_json(figures),
        "arms": [
            {"name": arm, "num_samples": figures.num_samples[arm], "metrics": by_arm[arm]} for arm in figures.arms
        ],
    }


def _intervals_json(figures: Figures) -> dict[str, Any]:
    drawn = {"resamples": NUM_RESAMPLES, "seed": SEED} if figures.method == "bootstrap" else {}
    return {"method": figures.method, "prompts": figures.num_prompts, "level": LEVEL, **drawn}
