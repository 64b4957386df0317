"""The command `steerserve interpret`. Nothing heavy is imported before it runs: `steerserve --help` stays quick."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steerserve.commands.labelling import KEY_VARIABLE, ask_for_labels, summary
from steerserve.commands.shared import environment_settings
from steerserve.commands.terminal import (
    BackendName,
    ContextSize,
    CorpusSources,
    DeviceName,
    ModelName,
    ProcessWeights,
    Threads,
    followed_run,
)
from steerserve.core.config import DEFAULT_MODEL
from steerserve.core.files import expand_home
from steerserve.core.literals import DEFAULT_INTERPRET_TOKENS
from steerserve.interpret.options import InterpretedSource, InterpretOptions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from steerserve.core.config import Settings
    from steerserve.interpret.interpret import Interpreted
    from steerserve.interpret.llm_labels import Labelled


def interpret_command(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="Dictionaries: bundled:MODEL/NAME, path:FOLDER, hf:REPOSITORY/FOLDER or sae_lens:RELEASE/SAE_ID.",
            show_default=False,
        ),
    ],
    corpus: CorpusSources,
    tokens: Annotated[
        int, typer.Option(help="Number of tokens to read, special tokens not counted.")
    ] = DEFAULT_INTERPRET_TOKENS,
    model: ModelName = DEFAULT_MODEL,
    context_size: ContextSize = 128,
    seed: Annotated[int, typer.Option(help="Of text that the model writes, and of a data set's order.")] = 0,
    device: DeviceName = "auto",
    dtype: Annotated[str, typer.Option(help="Of the model: auto, float32, bfloat16 or float16.")] = "auto",
    backend: BackendName = "bridge",
    threads: Threads = None,
    *,
    process_weights: ProcessWeights = True,
    calibrate: Annotated[
        bool, typer.Option("--calibrate/--no-calibrate", help="Measure doses and output scores too.")
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Take dictionaries made for another model too.")] = False,
    label_with: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="URL MODEL",
            help="Then have a language model label the features, through an OpenAI-compatible endpoint "
            f"(key in {KEY_VARIABLE}); more with steerserve features label-with.",
            show_default=False,
        ),
    ] = None,
    label_budget_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="With --label-with: number of tokens, for all dictionaries, after which no further feature is begun.",
            show_default=False,
        ),
    ] = None,
    label_limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="With --label-with: most features to label in each dictionary, those that write most first.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Read text and record what a dictionary's features do in it: statistics, snippets, tokens and labels.

    The results are written to a file beside the dictionary, or in dictionary_dirs if that cannot be written. Several
    dictionaries are interpreted in one scan. Stop it at any time: the same command goes on from there.
    """
    others = {
        "corpus": tuple(corpus),
        "tokens": tokens,
        "model": model,
        "context_size": context_size,
        "seed": seed,
        "device": device,
        "dtype": dtype,
        "backend": backend,
        "process_weights": process_weights,
        "calibrate": calibrate,
    }
    options = _options(environment_settings(), sources, force, others)
    from steerserve.jobs.work import prepare_and_interpret

    with followed_run(threads) as observer:
        interpreted = prepare_and_interpret(options, observer)
        labelled: list[Labelled] = []
        if label_with is not None:
            key = os.environ.get(KEY_VARIABLE) or None
            for result in interpreted:
                num_spent = sum(run.num_tokens for run in labelled)
                budget = None if label_budget_tokens is None else max(label_budget_tokens - num_spent, 0)
                run = ask_for_labels(
                    result.store, *label_with, key=key, budget_tokens=budget, limit=label_limit, observer=observer
                )
                labelled.append(run)
    for result in interpreted:
        typer.echo(_summary_line(result))
    for run in labelled:
        typer.echo(summary(run))


def _options(settings: Settings, sources: Sequence[str], force: bool, others: Mapping[str, Any]) -> InterpretOptions:
    folders = [Path(source.removeprefix("path:")) for source in sources if source.startswith("path:")]
    return InterpretOptions(
        dictionaries=tuple(
            InterpretedSource(name, source, force=force) for name, source in zip(_names(sources), sources, strict=True)
        ),
        dictionary_dirs=settings.dictionary_dirs,
        # A user who types a path may read it.
        allowed_dirs=(*settings.allowed_dictionary_dirs, *map(expand_home, folders)),
        max_dictionary_bytes=settings.max_dictionary_bytes,
        **others,
    )


def _names(sources: Sequence[str]) -> list[str]:
    """Return a short name for each source, all different."""
    names: list[str] = []
    for source in sources:
        last = source.rstrip("/").rpartition("/")[2].rpartition(":")[2]
        short = re.sub(r"[^A-Za-z0-9._-]+", "-", last) or "dictionary"
        names.append(short if short not in names else f"{short}-{len(names)}")
    return names


def _summary_line(result: Interpreted) -> str:
    calibrated = f", {result.num_calibrated:,} calibrated" if result.num_calibrated else ""
    return (
        f"{result.source}: {result.num_live:,} of {result.num_features:,} features active in {result.num_tokens:,} "
        f"tokens, {result.num_labelled:,} labelled{calibrated} ({result.store})"
    )
