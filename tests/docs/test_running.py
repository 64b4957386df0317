"""Code blocks of README and docs run, against a server of the default model as `steerserve serve` starts it."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from steerserve.core.config import DEFAULT_MODEL, Settings
from tests.docs.blocks import BLOCKS, ROOT, Block, matches

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.real_model, pytest.mark.slow]

NOT_RUN = {
    r"make serve|(\w+=\S+ )*steerserve serve": "the server of these tests stands for it; tests/commands starts others",
    r"pip install|git clone": "needs a network",
    r"\. |cd |export ": "is about the reader's own shell",
    r"steerserve train": "takes minutes; tests/training trains on less text",
    r"steerserve interpret": "takes minutes; tests/interpret interprets with less text",
    r"steerserve dictionaries judge": "takes minutes; tests/commands judges with less text",
    r"steerserve (compare|sweep)": "takes minutes; tests/experiments compares with a smaller model",
    r"steerserve bench|python bench/": "takes minutes; tests/bench measures a stand-in",
    r"steerserve features label-with": "needs a language model that somebody pays for",
    r"steerserve dictionaries (pull|show|check) \S*gpt2": "needs a network",
    r"steerserve corpus fetch": "needs a network",
    r"steerserve vectors import happy.gguf|python -c .*ae\.pt": "needs a file that the reader has",
    r"curl (-N )?\S+/admin/(train|interpret|jobs/train-res20)": "takes minutes; tests/jobs runs jobs",
    r"curl \S+/dictionaries/res20": "needs the dictionary that the job would have made",
    r"curl .*/dictionaries/mine|curl .*path:dictionaries/mine": "needs the dictionary that training would have made",
}
"""Commands that are not run, as patterns of how they begin, with the reason."""

BIN = Path(sys.executable).parent
START_S = 120
COMMAND_S = 240


def reason_not_to_run(command: str) -> str | None:
    return next((reason for pattern, reason in NOT_RUN.items() if re.match(pattern, command)), None)


@dataclass(frozen=True)
class Reader:
    """Somebody who follows the pages in a folder of their own, beside a running server."""

    folder: Path
    port: int
    environ: dict[str, str]

    def here(self, text: str) -> str:
        """Return a block's text with this server's port."""
        return re.sub(r"\b(127\.0\.0\.1|localhost):8000\b", rf"\1:{self.port}", text)

    def shell(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a shell command; what answers with an error's status fails."""
        url = f" --url http://127.0.0.1:{self.port}" if command.startswith("steerserve watch") else ""
        words = ["bash", "-c", re.sub(r"\bcurl ", "curl --fail-with-body --silent ", self.here(command)) + url]
        return subprocess.run(
            words,
            cwd=self.folder,
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=COMMAND_S,
        )


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """Start the server; its cache is the person's own only for what was fetched."""
    cache = Settings().cache_dir
    if not (cache / "models" / DEFAULT_MODEL).is_dir():
        pytest.skip("the default model is not in the cache")
    folder, own_cache = tmp_path_factory.mktemp("reader"), tmp_path_factory.mktemp("cache")
    for fetched in cache.iterdir():
        (own_cache / fetched.name).symlink_to(fetched)
    for name in ("presets", "experiments"):
        shutil.copytree(ROOT / name, folder / name)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    environ = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    environ |= {"STEERSERVE_CACHE_DIR": str(own_cache), "COLUMNS": "400", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "steerserve", "serve", "--port", str(port)]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, cwd=folder, env=environ, stdout=log, stderr=log)
        try:
            wait_until_ready(server, port, folder / "server.log")
            yield Reader(folder, port, environ)
        finally:
            server.terminate()
            server.wait()


def wait_until_ready(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"http://127.0.0.1:{port}/ready").is_success:
                return
        time.sleep(0.2)
    pytest.fail(f"the server did not start: {log.read_text(encoding='utf-8')}")


def run_shell(block: Block, reader: Reader) -> str:
    """Run the block's commands; returns what they print."""
    printed = ""
    commands = [command for command in block.commands() if reason_not_to_run(command) is None]
    for command in commands:
        done = reader.shell(command)
        status = block.exit if command == commands[-1] else 0
        assert done.returncode == status, f"{block}: {command}\nexit {done.returncode}, {done.stdout}"
        printed += done.stdout
    return printed


def run_python(block: Block, reader: Reader, names: dict[str, Any]) -> str:
    """Run the block after the page's earlier ones; returns what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(reader.here(block.text), str(block), "exec"), names)  # noqa: S102 (our own pages)
    return printed.getvalue()


@pytest.mark.parametrize("page", sorted({block.page for block in BLOCKS}))
@pytest.mark.timeout(600)
def test_what_a_page_shows_happens(page: str, reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(reader.folder)
    monkeypatch.setenv("STEERSERVE_CACHE_DIR", reader.environ["STEERSERVE_CACHE_DIR"])
    names: dict[str, Any] = {"__name__": "page"}
    for block in (block for block in BLOCKS if block.page == page and block.skip is None):
        for command in block.before:
            done = reader.shell(command)
            assert done.returncode == 0, f"{block}: {command}\n{done.stdout}"
        printed = None
        if block.language == "sh":
            printed = run_shell(block, reader)
        elif block.language == "python":
            printed = run_python(block, reader, names)
        elif block.file is not None:
            (reader.folder / block.file).write_text(block.text, encoding="utf-8")
        if block.output is not None:
            assert printed is not None, f"{block} shows an output, but prints nothing"
            assert matches(block.output, printed), f"{block} prints\n{printed}\nand not\n{block.output}"
    for value in reversed(names.values()):
        if isinstance(value, contextlib.AbstractContextManager):
            value.__exit__(None, None, None)  # closed, as by the end of a script


def test_every_reason_not_to_run_a_command_is_used() -> None:
    commands = [command for block in BLOCKS if block.language == "sh" for command in block.commands()]
    reasons = {reason_not_to_run(command) for command in commands}
    assert set(NOT_RUN.values()) - reasons == set()
