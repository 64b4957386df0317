"""The command line: what keeps it from starting is one line, and a server stops as it is told to."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import httpx
import pytest
import uvicorn
from typer.main import get_command
from typer.testing import CliRunner

import steerserve
from steerserve.cli import app, main
from steerserve.commands.serve import _Server, bind
from steerserve.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from steerserve.runtime import Runtime


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("STEERSERVE_"):
            monkeypatch.delenv(name)
    # `main` sets it, and it must not leak into other tests.
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")


def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """Run a command that must not start; returns what it says."""
    monkeypatch.setattr(sys, "argv", ["steerserve", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def printed(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_a_bad_setting_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert "--slots: engine.slots must be at least 1, not 0." in refused(capsys, monkeypatch, "serve", "--slots", "0")
    assert "There is no file" in refused(capsys, monkeypatch, "serve", "--config", str(tmp_path / "absent.yaml"))
    assert "set STEERSERVE_API_KEY" in refused(capsys, monkeypatch, "serve", "--host", "0.0.0.0")
    assert "is not ID=SOURCE" in refused(capsys, monkeypatch, "serve", "--dictionary", "nothing")
    assert "--dtype: model.dtype must be 'auto'" in refused(capsys, monkeypatch, "serve", "--dtype", "int8")
    assert "not 'tpu'" in refused(capsys, monkeypatch, "serve", "--device", "tpu")
    file = tmp_path / "steerserve.yaml"
    file.write_text("engine:\n  slot: 3\n", encoding="utf-8")
    said = refused(capsys, monkeypatch, "serve", "--config", str(file))
    assert said == f"steerserve: {file}:2:3: there is no setting engine.slot; did you mean engine.slots?\n"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("nothing", "The model 'nothing' does not exist"),
        ("/no/such.gguf", "such.gguf does not exist"),
        ("/", "no config.json"),
    ],
)
def test_a_model_that_cannot_be_served_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, source: str, expected: str
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert expected in refused(capsys, monkeypatch, "serve", "--port", "0", "--model", source)
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("arguments", [("--no-such-flag",), ("--port", "many")])
def test_a_flag_that_is_none_is_exit_code_2_without_a_traceback(arguments: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, ["serve", *arguments])
    assert result.exit_code == 2
    assert arguments[0] in result.stderr
    assert "Traceback" not in result.stderr


def test_a_port_in_use_is_found_before_the_model_loads(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        # This model does not exist; nobody gets so far as to look for it.
        said = refused(capsys, monkeypatch, "serve", "--port", str(port), "--model", "/nowhere")
    assert said.startswith(f"steerserve: 127.0.0.1:{port} cannot be bound: Address already in use.")
    signal.signal(signal.SIGTERM, before)


def test_port_0_takes_a_free_one_and_an_address_of_another_machine_is_refused() -> None:
    with bind("127.0.0.1", 0) as listener:
        assert listener.getsockname()[1] > 0
    with pytest.raises(ConfigError, match=r"203\.0\.113\.1:0 cannot be bound"):
        bind("203.0.113.1", 0)


def test_a_port_that_another_start_took_meanwhile_is_one_line() -> None:
    async def silent(_scope: object, _receive: object, _send: object) -> None:
        """Answer nothing."""

    def start_on(port: int) -> None:
        # Linux lets two sockets bind a port as long as neither listens; elsewhere this line is refused.
        with bind("127.0.0.1", port) as second:
            first.listen()
            config = uvicorn.Config(silent, lifespan="off", log_config=None)
            _Server(config, cast("Runtime", None)).run(sockets=[second])

    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port} cannot be bound: "):
            start_on(port)


def test_a_name_that_is_none_is_one_line() -> None:
    with pytest.raises(ConfigError, match="cannot be used: "):
        bind(f"{'a' * 64}.example", 0)


def test_a_configuration_that_is_no_json_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "model.safetensors").touch()
    for text in ("{", "[]"):
        (tmp_path / "config.json").write_text(text, encoding="utf-8")
        said = refused(capsys, monkeypatch, "models", "show", str(tmp_path))
        assert said.startswith(f"steerserve: {tmp_path}/config.json cannot be read: ")


def test_a_model_that_does_not_exist_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "The model 'nothing' does not exist" in refused(capsys, monkeypatch, "models", "fetch", "nothing")


def test_version_names_what_it_stands_on() -> None:
    lines = dict(line.split() for line in printed("version").splitlines())
    assert lines["steerserve"] == steerserve.__version__
    assert {"python", "torch", "transformers", "transformer-lens", "sae-lens"} <= lines.keys()


def test_models_are_listed_with_where_they_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STEERSERVE_CACHE_DIR", str(tmp_path))
    assert "not yet" in printed("models", "list")
    folder = tmp_path / "models" / "smollm2-135m-instruct"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    assert str(folder) in printed("models", "list")


def test_a_model_folder_is_shown(model_folders: dict[str, Path]) -> None:
    shown = printed("models", "show", str(model_folders["llama"]))
    assert "LlamaForCausalLM" in shown
    assert "d_model      48" in shown
    assert printed("models", "fetch", str(model_folders["gpt2"])).strip() == str(model_folders["gpt2"])


def test_dictionaries_of_the_configured_folders_are_listed(
    monkeypatch: pytest.MonkeyPatch, dictionary_folders: dict[str, Path]
) -> None:
    planted = dictionary_folders["planted"]
    monkeypatch.setenv("STEERSERVE_DICTIONARY_DIRS", f"{planted.parent},/nowhere")
    line = next(line for line in printed("dictionaries", "list").splitlines() if str(planted) in line)
    assert line.split() == [f"path:{planted}", "standard", "16", "blocks.0.hook_resid_post"]


@contextmanager
def serving(model: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a server of a tiny model, in a process of its own."""
    command = [sys.executable, "-m", "steerserve", "serve", "--model", str(model), "--port", "0", "--threads", "1"]
    # Where the tests run as a shell's background job, Ctrl-C is ignored, and a child would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        try:
            yield process
        finally:
            process.kill()


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = process.communicate()
    return process.returncode, errors


@pytest.mark.slow
def test_a_server_says_where_it_is_and_finishes_streams_when_told_to_stop(model_folders: dict[str, Path]) -> None:
    with serving(model_folders["llama"]) as process:
        assert read_line(process).startswith(f"steerserve {steerserve.__version__} serves llama at http://127.0.0.1:")
        words = shlex.split(read_line(process))
        assert words[0] == "curl"
        body = json.loads(words[words.index("-d") + 1])
        body |= {"stream": True, "max_tokens": 60, "ignore_eos": True, "temperature": 0}
        with httpx.stream("POST", words[1], json=body) as response:
            assert response.status_code == 200
            lines = (line for line in response.iter_lines() if line)
            first = next(lines)
            process.send_signal(signal.SIGTERM)
            rest = list(lines)
        assert first.startswith("data: {")
        assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        assert rest[-1] == "data: [DONE]"
        code, errors = end(process)
    assert code == 0
    assert "Traceback" not in errors


@pytest.mark.slow
def test_ctrl_c_is_quiet_and_130(model_folders: dict[str, Path]) -> None:
    with serving(model_folders["llama"]) as process:
        read_line(process)
        process.send_signal(signal.SIGINT)
        code, errors = end(process)
    assert code == 130
    assert "Traceback" not in errors


@pytest.mark.slow
@pytest.mark.parametrize(("stop", "expected"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_stop_while_the_model_loads_is_quiet(
    model_folders: dict[str, Path], stop: signal.Signals, expected: int
) -> None:
    with serving(model_folders["llama"]) as process:
        assert process.stderr is not None
        assert "Loading" in process.stderr.readline()
        process.send_signal(stop)
        code, errors = end(process)
    assert code == expected
    assert "Traceback" not in errors


def test_help_lists_the_commands_in_panels_with_serve_first() -> None:
    text = printed("--help")
    panels = [text.index(name) for name in ("Serve and look", "Steer", "Measure", "Train dictionaries")]
    assert panels == sorted(panels)
    commands = re.findall(r"^│ (\w+)  ", text, re.MULTILINE)
    assert commands[0] == "serve"
    assert set(commands) == set(getattr(get_command(app), "commands", ()))


def test_every_command_explains_itself() -> None:
    """Help texts are markup to typer: a bracket in one of them can end in a traceback."""

    def commands(group: object, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
        found = [path]
        for name, command in getattr(group, "commands", {}).items():
            found += commands(command, (*path, name))
        return found

    every = commands(get_command(app))
    assert len(every) > 15
    for path in every:
        result = CliRunner().invoke(app, [*path, "--help"])
        assert result.exit_code == 0, path
        assert "Usage" in result.output
