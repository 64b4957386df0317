"""The results of an experiment as CSV tables: samples and summary."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

from steerserve.core.files import write_text
from steerserve.experiments.figures import feature_names, metric_value

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from steerserve.experiments.figures import Figures
    from steerserve.experiments.samples import Record
    from steerserve.experiments.statistics import Estimate

_FROM_SAMPLE = ("seed", "arm", "control_of", "index", "finish_reason")
_SUMMARY = (
    *("arm", "metric", "n", "mean", "low", "high"),
    *("num_pairs", "difference", "difference_low", "difference_high"),
)


def write_samples(path: Path, records: Sequence[Record], figures: Figures) -> None:
    """Write a row for each sample: its origin, its metrics, its text."""
    names = [metric.name for metric in figures.metrics]
    prompts: dict[str, int] = {}
    rows = []
    for record in records:
        prompt = prompts.setdefault(repr(record["prompt"]), len(prompts))
        steering = record.get("steering") or {}
        own = [record.get(name) for name in _FROM_SAMPLE]
        divergence = (record.get("metrics") or {}).get("first_divergence")
        features = {*feature_names(record)}
        values = [metric_value(record, name) if "/" not in name or name in features else None for name in names]
        rows.append([prompt, *own, steering.get("fingerprint"), divergence, *values, record["text"]])
    header = ["prompt", *_FROM_SAMPLE, "fingerprint", "first_divergence", *names, "text"]
    _write(path, header, rows)


def write_summary(path: Path, figures: Figures) -> None:
    """Write a row for each arm and metric."""
    rows = []
    for (arm, metric), cell in figures.cells.items():
        mean, difference = _numbers(cell.mean), _numbers(cell.difference)
        rows.append([arm, metric, *mean, *difference])
    _write(path, _SUMMARY, rows)


def _numbers(estimate: Estimate | None) -> list[float | None]:
    return [None] * 4 if estimate is None else [estimate.num_values, estimate.mean, estimate.low, estimate.high]


def _write(path: Path, header: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())
