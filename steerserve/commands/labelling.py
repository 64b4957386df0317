"""Labels by a language model: the command `steerserve features label-with`, and `--label-with` of interpret."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Annotated

import typer

from steerserve.commands.feature_store import DictionarySource, find_dictionary
from steerserve.commands.terminal import followed_run
from steerserve.core.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from steerserve.core.observer import Observer
    from steerserve.interpret.llm_labels import Labelled

KEY_VARIABLE = "OPENAI_API_KEY"


def label_with_command(
    source: DictionarySource,
    url: Annotated[
        str, typer.Argument(help="OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1.", show_default=False)
    ],
    model: Annotated[str, typer.Argument(help="The model's name there.", show_default=False)],
    key_env: Annotated[
        str, typer.Option(help="Environment variable with the endpoint's key, if it needs one.")
    ] = KEY_VARIABLE,
    budget_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens after which no further feature is begun.", show_default=False),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Most features to label, those that write most first.", show_default=False),
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Requests at the same time.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the choice of snippets that labels are scored on.")] = 0,
) -> None:
    """Have a language model label features by their snippets, each scored on snippets that it was not shown.

    Labels are stored as they come. Stop it at any time: the same command goes on with the features that are left.
    """
    with followed_run() as observer:
        dictionary = find_dictionary(source)
        dictionary.store()  # fails if the dictionary was not interpreted
        labelled = ask_for_labels(
            dictionary.writable_store().path,
            url,
            model,
            key=os.environ.get(key_env) or None,
            budget_tokens=budget_tokens,
            limit=limit,
            concurrency=concurrency,
            seed=seed,
            observer=observer,
        )
    typer.echo(summary(labelled))


def ask_for_labels(
    store_path: Path,
    url: str,
    model: str,
    *,
    key: str | None,
    observer: Observer,
    budget_tokens: int | None = None,
    limit: int | None = None,
    concurrency: int = 4,
    seed: int = 0,
) -> Labelled:
    """Label the live features of a store, those that write most first.

    Raises:
        ConfigError: the endpoint cannot be used; labels so far are stored.
        StoppedError: the observer requested a stop; labels so far are stored.
    """
    from steerserve.interpret.endpoint import ChatEndpoint, EndpointError
    from steerserve.interpret.llm_labels import label_features
    from steerserve.store.store import FeatureStore

    store = FeatureStore.open(store_path)
    counts = store.counts()
    hits, _ = store.search("", "steerability", min(limit or counts.num_live, max(counts.num_live, 1)), 0)

    async def run() -> Labelled:
        endpoint = ChatEndpoint(url, model, key)
        try:
            return await label_features(
                store,
                [hit.feature for hit in hits],
                endpoint,
                budget_tokens=budget_tokens,
                concurrency=concurrency,
                seed=seed,
                observer=observer,
            )
        finally:
            await endpoint.close()

    try:
        return asyncio.run(run())
    except EndpointError as error:
        raise ConfigError(error.message) from error


def summary(labelled: Labelled) -> str:
    """Return the result of a labelling run in one line."""
    failed = f", {labelled.num_failed:,} answers could not be read" if labelled.num_failed else ""
    spent = "; the budget is spent" if labelled.is_spent else ""
    return f"{labelled.num_labelled:,} features labelled with {labelled.num_tokens:,} tokens{failed}{spent}"
