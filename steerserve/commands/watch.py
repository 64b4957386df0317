"""The command `steerserve watch`. Nothing heavy is imported before it runs."""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from steerserve.commands.terminal import EXIT_STOPPED
from steerserve.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from steerserve.commands.watch_stream import SeenToken
    from steerserve.commands.watch_view import WatchView

_FRAMES_A_SECOND = 12


def watch_command(
    prompt: Annotated[str, typer.Argument(help="What to say to the model.", show_default=False)],
    url: Annotated[str, typer.Option(help="A running server, with or without /v1.")] = "http://127.0.0.1:8000",
    key_env: Annotated[
        str, typer.Option(help="The environment variable that holds the key, where the server wants one.")
    ] = "STEERSERVE_API_KEY",
    model: Annotated[
        str | None, typer.Option(help="As in a request, such as model@preset; the served one if not given.")
    ] = None,
    feature: Annotated[
        int | None, typer.Option(help="Colours tokens; each token's strongest feature if not given.", min=0)
    ] = None,
    dictionary: Annotated[str | None, typer.Option(help="Dictionary id; the default one if not given.")] = None,
    top: Annotated[int, typer.Option(help="Features in the table.", min=1, max=64)] = 8,
    steering: Annotated[str | None, typer.Option(help="A preset's name, or JSON as in a request.")] = None,
    system: Annotated[str | None, typer.Option(help="A system prompt.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens of the answer at most.", min=1)] = 128,
    temperature: Annotated[float | None, typer.Option(help="The server's if not given.", min=0, max=2)] = None,
    seed: Annotated[int | None, typer.Option(help="A new one each time if not given.")] = None,
    *,
    prompt_tokens: Annotated[bool, typer.Option("--prompt-tokens", help="Show the prompt's tokens too.")] = False,
) -> None:
    """Show an answer of a running server as it is written, its tokens coloured by a feature."""
    from steerserve.commands.watch_stream import FeatureInfo, WatchClient
    from steerserve.commands.watch_view import WatchView

    sent_steering = _read_steering(steering)
    with contextlib.closing(WatchClient(url, os.environ.get(key_env) or None)) as client:
        name = model or client.model()
        watched = client.dictionary(dictionary)
        info = client.feature(watched, feature) if feature is not None else FeatureInfo(None, None)
        messages = [{"role": "user", "content": prompt}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        options = {"top": top, "watch": [] if feature is None else [feature], "dictionaries": [watched]}
        body: dict[str, Any] = {
            "model": name,
            "messages": messages,
            "features": options | {"prompt": prompt_tokens},
            "steering": sent_steering,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "seed": seed,
        }
        said = "strongest feature" if feature is None else f"{feature} {info.label or ''}".strip()
        view = WatchView(feature, info, title=f"{name}, {watched}: {said}")
        try:
            _show(client.tokens(body, watched), view, Console())
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
    finally:  # whole, whatever ended it
        view.is_live = False
        if view.has_tokens:
            console.print(view)


def _read_steering(text: str | None) -> Any:  # noqa: ANN401 any of its spellings
    """Read JSON, or else take the text as a preset's name.

    Raises:
        ConfigError: it begins as JSON and is none.
    """
    if text is None or not text.lstrip().startswith(("[", "{")):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        message = f"--steering: that is no JSON ({error}). Write a preset's name, or a list of edits."
        raise ConfigError(message) from error
