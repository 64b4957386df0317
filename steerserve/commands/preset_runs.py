"""The commands of `steerserve presets` that run the model: trying presets, and making one from texts."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import TYPE_CHECKING, Any

import typer
from rich.markup import escape
from rich.table import Table

from steerserve.commands.shared import print_table
from steerserve.core.errors import ConfigError, InvalidRequestError, PresetError, SteerserveError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from steerserve.contrast.separation import Candidate
    from steerserve.core.config import Settings
    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.engine.request import GenerationRequest
    from steerserve.presets.preset import Preset
    from steerserve.presets.schema import Check
    from steerserve.presets.verdicts import Verdict
    from steerserve.runtime import Runtime
    from steerserve.store.records import Calibration

_CHECK_TOKENS = 64
_MAX_CANDIDATES = 12
"""Features whose doses are measured where they are not known; each takes seconds on a CPU."""
_SHOWN_CHARS = 60


def run_checks(settings: Settings, names: Sequence[str], *, verbose: bool) -> bool:
    """Try the checks of presets, all of them without names; print what came out and tell whether all is well.

    Raises:
        StartupError: there is no such preset, or the model cannot be loaded.
    """
    with _engine(settings) as runtime:
        presets = runtime.presets.snapshot()
        table = Table("preset", "prompt", "asked for", "found", "ok", box=None)
        is_ok = True
        for name in names or presets.usable():
            preset = _find(runtime, name)
            if not preset.content.checks:
                table.add_row(name, "", "no checks", "", "-")
            for check in preset.content.checks:
                for verdict in _try(runtime, preset, check, verbose=verbose):
                    is_ok = is_ok and verdict.is_ok
                    shown = "[green]yes[/]" if verdict.is_ok else "[red]no[/]"
                    row = (name, _short(check.prompt), escape(verdict.asked), escape(verdict.found), shown)
                    table.add_row(*row)
        for name, problem in sorted(presets.broken.items()):
            if not names or name in names:
                is_ok = False
                table.add_row(escape(name), "", "a file that can be read", escape(problem), "[red]no[/]")
        print_table(table)
    return is_ok


def make_preset(
    settings: Settings, name: str, positive: Path, negative: Path, *, dictionary_id: str | None, max_edits: int
) -> str:
    """Return the YAML of a preset that leads from some texts to others; prints the features it is made of.

    Raises:
        StartupError: a file cannot be read, the model cannot be loaded, or no feature tells the texts apart.
    """
    from steerserve.contrast.contrast import contrast, ready_steering
    from steerserve.contrast.text_sets import read_text_sets

    leads_to, leads_from = _lines(positive), _lines(negative)
    with _engine(settings) as runtime:
        try:
            dictionary = runtime.registry.snapshot().find(dictionary_id, "dictionary")
            sets = read_text_sets(runtime.tokenizer, leads_to, leads_from, runtime.context_length)
            work = contrast(runtime.engine, dictionary, sets, _MAX_CANDIDATES, runtime.contrast_line)
            candidates = asyncio.run(work)
        except InvalidRequestError as error:
            raise ConfigError(error.message) from error
        calibrations = _calibrations(runtime, dictionary, candidates)
        edits = ready_steering(candidates, dictionary, calibrations, max_edits)
        if not edits:
            message = (
                f"No feature of {dictionary.id!r} marks the texts of {positive.name} better than chance explains. Give "
                "more texts (ten of each kind are often enough), or ones that differ in one thing alone."
            )
            raise ConfigError(message)
        labels = runtime.stores.labels(dictionary, [edit["feature"] for edit in edits])
        chosen = {candidate.feature: candidate for candidate in candidates}
        _show(edits, chosen, labels)
        return _yaml(settings, runtime.model_id, name, (positive, negative), edits, chosen, labels)


@contextlib.contextmanager
def _engine(settings: Settings) -> Iterator[Runtime]:
    """Load the model and generate with it, while no jobs run."""
    from steerserve.runtime import build_runtime

    runtime = build_runtime(settings)
    try:
        runtime.start(with_jobs=False)
        yield runtime
    finally:
        runtime.stop()


def _find(runtime: Runtime, name: str) -> Preset:
    try:
        return runtime.presets.find(name)
    except SteerserveError as error:
        raise PresetError(error.message, param="name") from error


def _try(runtime: Runtime, preset: Preset, check: Check, *, verbose: bool) -> Iterator[Verdict]:
    """Generate what a check asks for, as a request would, and judge it."""
    from steerserve.presets.measure import Continuation, largest_activation, mean_kl, repetition
    from steerserve.presets.verdicts import Measured, Verdict, verdicts_of

    try:
        request = asyncio.run(_request(runtime, preset, check))
        [events] = runtime.engine.generate([request])
        text = "".join(event.text for event in events)
        ids = tuple(token_id for event in events for token_id in event.token_ids)
        read = Continuation(request.prompt_ids, ids)
        asked = check.activates
        activation = None
        if asked is not None:
            dictionary = runtime.registry.snapshot().find(asked.dictionary, "activates.dictionary")
            if asked.feature >= dictionary.d_sae:
                message = f"Dictionary {dictionary.id!r} has features 0 to {dictionary.d_sae - 1}."
                raise InvalidRequestError(message, param="activates.feature")
            activation = largest_activation(runtime.engine, read, dictionary, asked.feature)
        kl = mean_kl(runtime.engine, read, request.steering) if check.max_kl is not None else None
    except SteerserveError as error:
        yield Verdict("that it runs", error.message, is_ok=False)
        return
    if verbose:
        typer.echo(f"{preset.name}: {check.prompt!r}\n    {text!r}")
    yield from verdicts_of(check, Measured(text, activation, kl, repetition(ids)))


async def _request(runtime: Runtime, preset: Preset, check: Check) -> GenerationRequest:
    from steerserve.requests.generation import prepare_text

    max_tokens, seed = check.max_tokens, check.seed
    if max_tokens is None and preset.content.sampling.max_tokens is None:
        max_tokens = _CHECK_TOKENS
    if seed is None and preset.content.sampling.seed is None:
        seed = 0
    return await prepare_text(runtime, check.prompt, presets=[preset.name], max_tokens=max_tokens, seed=seed)


def _lines(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{file} cannot be read: {reason}.") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    least = 2
    if len(lines) < least:
        raise ConfigError(f"{file} has {len(lines)} texts, one a line; at least {least} are needed.")
    return lines


def _calibrations(
    runtime: Runtime, dictionary: Dictionary, candidates: Sequence[Candidate]
) -> Mapping[int, Calibration]:
    """Return the doses of the features that may be chosen; what nobody knows yet is measured."""
    for candidate in candidates:
        edit = {"dictionary": dictionary.id, "feature": candidate.feature, "scale": 1.0, "unit": "dose"}
        with contextlib.suppress(InvalidRequestError):  # no strength of it is a dose
            runtime.resolve_steering([edit])
    store = runtime.stores.find(dictionary)
    return store.calibrations() if store is not None else {}


def _show(edits: Sequence[Mapping[str, Any]], chosen: Mapping[int, Candidate], labels: Mapping[int, str]) -> None:
    table = Table("feature", "label", "AUC", "left out", "p", "scale", "unit", box=None)
    for edit in edits:
        found = chosen[edit["feature"]]
        figures = (f"{found.auc:.2f}", f"{found.held_out_auc:.2f}", f"{found.p_value:.3f}")
        label = escape(labels.get(found.feature, ""))
        table.add_row(str(found.feature), label, *figures, f"{edit['scale']:g}", edit["unit"])
    print_table(table)


def _yaml(
    settings: Settings,
    model_id: str,
    name: str,
    files: tuple[Path, Path],
    edits: Sequence[Mapping[str, Any]],
    chosen: Mapping[int, Candidate],
    labels: Mapping[int, str],
) -> str:
    from steerserve.presets.writing import dump_line, dump_preset, schema_line

    positive, negative = (file.name for file in files)
    content = {"name": name, "description": f"From the texts of {negative} to those of {positive}.", "model": model_id}
    lines = [
        *dump_preset(content, settings.presets_dir).splitlines()[1:],
        "# What `steerserve presets new` found to tell the texts apart, together about one dose (which is visible).",
        "# Multiply the scales to push harder, or send the preset with a `strength`.",
        "edits:",
    ]
    for edit in edits:
        found = chosen[edit["feature"]]
        label = re.sub(r"[^\x20-\x7e]", " ", labels.get(found.feature, "no label"))
        lines.append(f"  # {label}; AUC {found.auc:.2f}, on texts left out {found.held_out_auc:.2f}")
        lines.append(f"  - {dump_line(edit)}")
    lines += [
        "checks:",
        "  # `steerserve presets test` tries these; add what must be in the text (contains_any, activates).",
        "  - prompt: Tell me about yourself.",
        "    max_repetition: 0.3",
    ]
    return schema_line(settings.presets_dir) + "\n".join(lines) + "\n"


def _short(prompt: str) -> str:
    line = " ".join(prompt.split())
    return escape(line if len(line) <= _SHOWN_CHARS else line[: _SHOWN_CHARS - 3] + "...")
