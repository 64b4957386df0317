"""The command `steerserve watch`. Imports what is slow to import only when it runs."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from steerserve.commands.shared import DEFAULT_KEY_VARIABLE, DEFAULT_URL, KeyVariable, ServerUrl
from steerserve.commands.terminal import EXIT_STOPPED
from steerserve.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from steerserve.commands.watch_stream import SeenToken
    from steerserve.commands.watch_view import WatchView

_FRAMES_A_SECOND = 12


def watch_command(
    prompt: Annotated[str, typer.Argument(help="Message to the model.", show_default=False)],
    url: ServerUrl = DEFAULT_URL,
    key_env: KeyVariable = DEFAULT_KEY_VARIABLE,
    model: Annotated[
        str | None, typer.Option(help="Model name as in a request, such as model@preset. Default: the served model.")
    ] = None,
    feature: Annotated[
        int | None, typer.Option(help="Feature that colours the tokens. Default: each token's strongest one.", min=0)
    ] = None,
    dictionary: Annotated[str | None, typer.Option(help="Dictionary id. Default: the server's default.")] = None,
    top: Annotated[int, typer.Option(help="Number of features in the table.", min=1, max=64)] = 8,
    steering: Annotated[str | None, typer.Option(help="A preset's name, or JSON as in a request.")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Largest number of tokens of the answer.", min=1)] = 128,
    temperature: Annotated[
        float | None, typer.Option(help="Sampling temperature. Default: the server's.", min=0, max=2)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the answer. Default: a new one each time.")] = None,
    *,
    prompt_tokens: Annotated[bool, typer.Option("--prompt-tokens", help="Show the prompt's tokens too.")] = False,
) -> None:
    """Show an answer of a running server as it is generated, its tokens coloured by a feature."""
    from steerserve.client.served import served_model
    from steerserve.client.server_client import ServerClient, environment_key
    from steerserve.commands.watch_stream import FeatureInfo, describe_feature, find_dictionary, watch_tokens
    from steerserve.commands.watch_view import WatchView

    parsed_steering = _read_steering(steering)
    with ServerClient(url, environment_key(os.environ, key_env)) as client:
        name = model or served_model(client.get("/v1/models"), client.url)
        watched = find_dictionary(client, dictionary)
        info = describe_feature(client, watched, feature) if feature is not None else FeatureInfo(None, None)
        messages = [{"role": "user", "content": prompt}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        options = {"top": top, "watch": [] if feature is None else [feature], "dictionaries": [watched]}
        body: dict[str, Any] = {
            "model": name,
            "messages": messages,
            "features": options | {"prompt": prompt_tokens},
            "steering": parsed_steering,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "seed": seed,
        }
        subject = "strongest feature" if feature is None else f"{feature} {info.label or ''}".strip()
        view = WatchView(feature, info, title=f"{name}, {watched}: {subject}")
        try:
            _show(watch_tokens(client, body, watched), view, Console())
        except KeyboardInterrupt:
            typer.echo("stopped", err=True)
            raise typer.Exit(EXIT_STOPPED) from None


def _show(tokens: Iterator[SeenToken], view: WatchView, console: Console) -> None:
    if not console.is_terminal:
        for token in tokens:
            view.add(token)
            typer.echo(view.line(token))
        return
    from rich.live import Live

    view.is_live = True
    try:
        with Live(view, console=console, refresh_per_second=_FRAMES_A_SECOND, transient=True):
            for token in tokens:
                view.add(token)
    finally:  # the whole answer stays on the screen, however the stream ended
        view.is_live = False
        if view.has_tokens:
            console.print(view)


def _read_steering(text: str | None) -> Any:  # noqa: ANN401 any of its spellings
    """Parse a text that begins as JSON; any other text is a preset's name.

    Raises:
        ConfigError: the text begins as JSON and is not valid JSON.
    """
    if text is None or not text.lstrip().startswith(("[", "{")):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        message = f"--steering: the text is not valid JSON ({error}). Write a preset's name, or a list of edits."
        raise ConfigError(message) from error
