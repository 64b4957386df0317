"""An experiment's report: one self-contained page of HTML, in which every text is escaped."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader

from steerserve.experiments.charts import HEIGHT, WIDTH, ChartPoint, chart
from steerserve.experiments.curves import find_curves
from steerserve.experiments.figures import BROKEN_REPETITION
from steerserve.experiments.samples import planned
from steerserve.experiments.statistics import MIN_BOOTSTRAPPED, MIN_PROMPTS, NUM_RESAMPLES, SEED
from steerserve.experiments.texts import LEVELS, Shades, pieces_of, plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from steerserve.experiments.curves import Curve, Dose
    from steerserve.experiments.experiment import Experiment
    from steerserve.experiments.figures import Figures, Metric
    from steerserve.experiments.judge import WinRate
    from steerserve.experiments.samples import Record
    from steerserve.experiments.statistics import Estimate

_MAX_TEXTS = 400
"""Largest number of texts on the page; samples.jsonl has all."""
_MAX_SIDE_EFFECTS = 8
_CHARTED = ("kl", "repetition", "surprise")


def _shown(value: object) -> object:
    """Replace what a page cannot show in a text; the template's own markup stays."""
    return plain(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


_environment = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    finalize=_shown,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True, slots=True)
class Results:
    """The contents of a report."""

    experiment: Experiment
    run: Mapping[str, Any]
    records: Sequence[Record]
    figures: Figures
    rates: Sequence[WinRate] = ()


def render_report(results: Results) -> str:
    """Return the page."""
    experiment, figures, run = results.experiment, results.figures, results.run
    records = list(results.records)
    labels = _labels(records)
    comparisons = _comparisons(results)
    return _environment.get_template("report.html.jinja").render(
        name=experiment.name,
        description=experiment.content.description,
        arms=[_arm(arm, records, labels) for arm in experiment.arms],
        first=figures.arms[0],
        figures=figures,
        metrics=figures.metrics,
        labels=labels,
        number=_number,
        findings=_findings(figures, labels),
        curves=[_curve(curve, figures, labels) for curve in find_curves(experiment)],
        comparisons=comparisons,
        num_left_out=max(0, len({(record["key"], record["index"]) for record in records}) - len(comparisons)),
        num_done=len({record["key"] for record in records}),
        num_planned=len(planned(experiment)),
        side_effects=_side_effects(records, figures.arms),
        judge=experiment.content.judge,
        rates=results.rates,
        run=run,
        session=run["sessions"][-1],
        made=time.strftime("%Y-%m-%d", time.gmtime(run["sessions"][-1]["started"])),
        versions=list({tuple(part["versions"].items()): part["versions"] for part in run["sessions"]}.values()),
        setup=run["setup"],
        seeds=experiment.seeds,
        text=experiment.text,
        width=WIDTH,
        height=HEIGHT,
        levels=range(1, LEVELS + 1),
        num_resamples=NUM_RESAMPLES,
        bootstrap_seed=SEED,
        min_prompts=MIN_PROMPTS,
        min_bootstrapped=MIN_BOOTSTRAPPED,
    )


def _number(value: float | None, digits: int, *, signed: bool = False) -> str:
    if value is None:
        return "n/a"
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}") if float(text) else f"{0:.{digits}f}"


def _labels(records: Sequence[Record]) -> dict[str, str]:
    """Return the labels of the edited features, as the receipts give them."""
    edits = [edit for record in records for edit in (record.get("steering") or {}).get("edits", [])]
    return {f"{edit['dictionary']}/{edit['feature']}": edit["label"] for edit in edits if edit.get("label")}


def _arm(arm: Mapping[str, Any], records: Sequence[Record], labels: Mapping[str, str]) -> dict[str, Any]:
    """Return an arm's settings, and what its first receipt says that it did."""
    own = [record for record in records if record["arm"] == arm["name"]]
    receipt: dict[str, Any] = next((record["steering"] for record in own if record.get("steering")), {})
    edits = [
        {
            **edit,
            "title": f"{edit['dictionary']}/{edit['feature']}"
            if edit.get("feature") is not None
            else edit.get("vector", "vector"),
            "mean_change": _mean(
                [record["steering"]["edits"][index]["mean_change"] for record in own if record.get("steering")]
            ),
        }
        for index, edit in enumerate(receipt.get("edits", []))
    ]
    return {
        "name": arm["name"],
        "system": arm.get("system"),
        "control_of": arm.get("control_of"),
        "strength": receipt.get("strength", 1.0),
        "edits": edits,
        "labels": labels,
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _findings(figures: Figures, labels: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return, for each arm, the metrics whose interval excludes 0, in words."""
    findings = []
    for arm in figures.arms[1:]:
        sentences = []
        for metric in figures.metrics:
            difference = figures.cell(arm, metric.name).difference
            if difference is not None and difference.excludes_zero:
                sentences.append(_sentence(metric, difference, labels))
        findings.append({"arm": arm, "sentences": sentences})
    return findings


def _sentence(metric: Metric, difference: Estimate, labels: Mapping[str, str]) -> str:
    label = f" ({labels[metric.name]})" if metric.name in labels else ""
    mean, low, high = (
        _number(value, metric.digits, signed=True) for value in (difference.mean, difference.low, difference.high)
    )
    return f"{metric.title}{label} {mean} [{low}, {high}]"


def _curve(curve: Curve, figures: Figures, labels: Mapping[str, str]) -> dict[str, Any]:
    metrics = [metric for metric in figures.metrics if metric.name in _CHARTED or "/" in metric.name]
    charts = []
    for metric in metrics:
        points, controls = (_points(doses, metric, figures) for doses in (curve.points, curve.controls))
        if points:
            limit = BROKEN_REPETITION if metric.name == "repetition" else None
            title = f"activation of {metric.title}" if "/" in metric.name else metric.title
            charts.append(chart(title, curve.title, points, controls, limit))
    return {"title": curve.title, "charts": charts, "has_controls": bool(curve.controls), "labels": labels}


def _points(doses: Sequence[Dose], metric: Metric, figures: Figures) -> list[ChartPoint]:
    means = ((arm, dose, figures.cell(arm, metric.name).mean) for arm, dose in doses)
    return [ChartPoint(dose, mean.mean, mean.low, mean.high, arm) for arm, dose, mean in means if mean is not None]


def _comparisons(results: Results) -> list[dict[str, Any]]:
    """Return the texts of each prompt, seed and sample, a column for each arm."""
    arms = results.figures.arms
    groups: dict[tuple[str, int], dict[str, Record]] = defaultdict(dict)
    for record in results.records:
        groups[record["key"], record["index"]][record["arm"]] = record
    shades = Shades(results.records)
    shown = []
    for (_, index), group in list(groups.items())[: max(1, _MAX_TEXTS // len(arms))]:
        first = group[arms[0]]
        prompt = first["prompt"]
        shown.append(
            {
                "messages": prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}],
                "seed": first["seed"],
                "index": index if results.experiment.content.n > 1 else None,
                "columns": [_column(group[arm], shades, is_first=arm == arms[0]) for arm in arms if arm in group],
            }
        )
    return shown


def _column(record: Record, shades: Shades, *, is_first: bool) -> dict[str, Any]:
    metrics = record.get("metrics") or {}
    divergence = metrics.get("first_divergence")
    pieces = pieces_of(record, shades)
    acts = metrics.get("features", {})
    return {
        "arm": record["arm"],
        "pieces": pieces,
        "is_first": is_first,
        "is_same": not is_first and divergence is None,
        "ends_first": divergence is not None and all(piece.is_shared for piece in pieces),
        "divergence": divergence,
        "kl": metrics.get("kl"),
        "repetition": metrics.get("repetition"),
        "is_broken": (metrics.get("repetition") or 0) > BROKEN_REPETITION,
        "acts": [(f"{name}/{feature}", act) for name, own in acts.items() for feature, act in own.items()][:3],
        "is_cut": record.get("finish_reason") == "length",
    }


def _side_effects(records: Sequence[Record], arms: Sequence[str]) -> list[dict[str, Any]]:
    """Return the features that shifted most in each arm, by the sum of the shifts in its samples."""
    effects = []
    for arm in arms[1:]:
        own = [record for record in records if record["arm"] == arm]
        shifts: dict[tuple[str, int], list[float]] = defaultdict(list)
        labels: dict[tuple[str, int], str] = {}
        for record in own:
            for shift in (record.get("metrics") or {}).get("side_effects", []):
                feature = shift["dictionary"], shift["feature"]
                shifts[feature].append(shift["change"])
                labels[feature] = shift.get("label") or ""
        strongest = sorted(shifts, key=lambda feature: -abs(sum(shifts[feature])))[:_MAX_SIDE_EFFECTS]
        rows: list[dict[str, Any]] = [
            {
                "feature": f"{feature[0]}/{feature[1]}",
                "label": labels[feature],
                "change": sum(shifts[feature]) / len(own),
                "num": len(shifts[feature]),
            }
            for feature in strongest
        ]
        largest = max((abs(row["change"]) for row in rows), default=1.0) or 1.0
        for row in rows:
            row["share"] = round(100 * abs(row["change"]) / largest)
        if rows:
            effects.append({"arm": arm, "rows": rows, "num_samples": len(own)})
    return effects
