"""The files made from an experiment's samples: tables, figures, the report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from steerserve.core.errors import ConfigError
from steerserve.core.files import write_json, write_text
from steerserve.experiments.figures import figures_json, summarise
from steerserve.experiments.judge import find_pairs, win_rates, win_rates_json
from steerserve.experiments.report import Results, render_report
from steerserve.experiments.samples import planned, unwritable
from steerserve.experiments.tables import write_samples, write_summary

if TYPE_CHECKING:
    from collections.abc import Mapping

    from steerserve.experiments.experiment import Experiment
    from steerserve.experiments.figures import Figures
    from steerserve.experiments.samples import Record, ResultsFolder

REPORT_FILE = "report.html"


def planned_records(experiment: Experiment, folder: ResultsFolder) -> list[Record]:
    """Return the samples made so far, in the order of the experiment's file."""
    plan = planned(experiment)
    size = len(experiment.content.arms) * experiment.content.n
    samples = folder.repaired({comparison.key: size for comparison in plan})
    return [record for comparison in plan for record in samples.get(comparison.key, [])]


def write_outputs(experiment: Experiment, folder: ResultsFolder, run: Mapping[str, Any]) -> Figures:
    """Write the tables and the report of the samples made so far.

    Raises:
        ConfigError: the folder has no samples or those of another experiment, and no file is changed; or the folder
            cannot be written.
    """
    _check_same(experiment, folder, run["setup"])
    records = planned_records(experiment, folder)
    if not records:
        raise ConfigError(f"{folder.path} has no samples of {experiment.name!r} yet. Run it first.")
    arms = [arm.name for arm in experiment.content.arms]
    figures = summarise(records, arms)
    judge, pairs = experiment.content.judge, find_pairs(records, arms)
    rates = win_rates(judge, pairs, folder.path, arms) if judge is not None else []
    summary = {"experiment": experiment.name, "digest": run["digest"], **figures_json(figures)}
    if judge is not None:
        summary["judge"] = win_rates_json(judge, rates)
    report = render_report(Results(experiment, run, records, figures, rates))
    try:
        write_samples(folder.path / "samples.csv", records, figures)
        write_summary(folder.path / "summary.csv", figures)
        write_json(folder.path / "summary.json", summary)
        write_text(folder.path / REPORT_FILE, report)
    except OSError as error:
        raise unwritable(folder.path, error) from error
    return figures


def _check_same(experiment: Experiment, folder: ResultsFolder, setup: Mapping[str, Any]) -> None:
    """Refuse samples of another experiment: comparisons with another number of samples would be dropped as broken."""
    names = ("name", "system", "control_of")
    requested = [tuple(arm.get(name) for name in names) for arm in experiment.arms]
    made = [tuple(arm[name] for name in names) for arm in setup["arms"]]
    content = experiment.content
    limits = {"n": content.n, "max_tokens": content.max_tokens, **experiment.sampling}
    if requested != made or any(setup.get(name) != value for name, value in limits.items()):
        message = (
            f"{folder.path} has samples of another experiment: its arms, sampling or limits differ from the file's. "
            "Give this experiment its own folder with --out, or leave out --report-only."
        )
        raise ConfigError(message)
