"""The command `steerserve serve`. Slow modules are imported only when it runs, so that `--help` is quick."""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
import uvicorn

import steerserve
from steerserve.core.errors import ConfigError

if TYPE_CHECKING:
    from steerserve.core.config import Settings
    from steerserve.runtime import Runtime


def serve_command(
    config: Annotated[Path | None, typer.Option(help="YAML file with settings.", show_default=False)] = None,
    model: Annotated[
        str | None, typer.Option(help="Model to serve: a built-in name, a hub repository, a folder or a .gguf file.")
    ] = None,
    dictionary: Annotated[
        list[str] | None,
        typer.Option(metavar="ID=SOURCE", help="Dictionary to load. Repeatable; replaces the configured dictionaries."),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to bind. Default: 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to bind; 0 takes a free port. Default: 8000.")] = None,
    slots: Annotated[int | None, typer.Option(help="Number of sequences that generate at the same time.")] = None,
    context: Annotated[int | None, typer.Option(help="Largest number of tokens of prompt and answer together.")] = None,
    queue: Annotated[int | None, typer.Option(help="Number of sequences that may wait.")] = None,
    threads: Annotated[int | None, typer.Option(help="Number of CPU threads of the model.")] = None,
    device: Annotated[str | None, typer.Option(help="Device: auto, cpu, cuda or cuda:N.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Number format: auto, float32, bfloat16 or float16.")] = None,
    backend: Annotated[str | None, typer.Option(help="What runs the model: bridge or hooked_transformer.")] = None,
    presets_dir: Annotated[str | None, typer.Option(help="Folder with preset files.")] = None,
    keys_file: Annotated[str | None, typer.Option(help="YAML file with the lists api_keys and admin_keys.")] = None,
    log_level: Annotated[str | None, typer.Option(help="Least severe logs: debug, info, warning or error.")] = None,
) -> None:
    """Serve a model over HTTP with OpenAI's API."""
    from steerserve.core.log import set_up_logging
    from steerserve.core.settings_sources import Flag, load_settings

    flags = [
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
    settings = load_settings(config, environ=os.environ, flags=[flag for flag in flags if flag.value is not None])
    set_up_logging(settings.log_level)
    # SIGTERM also stops the command while the model loads; uvicorn handles the signal while it serves.
    signal.signal(signal.SIGTERM, _leave)
    with bind(settings.server.host, settings.server.port) as listener:
        _serve_on(listener, settings)


def bind(host: str, port: int) -> socket.socket:
    """Bind the address before the model loads, so that a port in use is reported at once.

    Raises:
        ConfigError: the address is in use, does not belong to this machine, or is not allowed.
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
    advice = "Choose another address with --host or --port (0 takes a free port)."
    message = f"{host}:{port} cannot be bound: {error.strerror}. {advice}"
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
    """Prints its address once it listens."""

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
    """Print the server's address, and a request to try."""
    dictionaries = ", ".join(dictionary.id for dictionary in runtime.dictionaries()) or "none"
    typer.echo(f"steerserve {steerserve.__version__} serves {runtime.model_id} at {url} (dictionaries: {dictionaries})")
    body = json.dumps({"model": runtime.model_id, "messages": [{"role": "user", "content": "Hello!"}]})
    server = runtime.settings.server
    variable = "STEERSERVE_API_KEY" if server.api_keys else "STEERSERVE_ADMIN_KEY" if server.admin_keys else None
    key = f' -H "authorization: Bearer ${variable}"' if variable else ""
    typer.echo(f"curl {url}/v1/chat/completions -H 'content-type: application/json'{key} -d {shlex.quote(body)}")


def _leave(*_: object) -> NoReturn:
    sys.exit(0)
