"""Fetches a model's files: from a built-in name, a hub repository, a folder or a GGUF file.

For every source, `fetch_model` returns a local folder of safetensors, configuration and tokenizer. Nothing is ever
unpickled. This module handles files; it does not build the model.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from steerserve.core.config import default_cache_dir
from steerserve.core.errors import ModelSourceError
from steerserve.core.hub import UNREACHABLE, hub_failure
from steerserve.core.progress import progress_line
from steerserve.model.download import BUILTIN_MODELS, fetch_builtin
from steerserve.model.gguf import convert_gguf

HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
_HOOKED_FIELDS = {"d_model", "d_head", "n_layers", "n_ctx"}
_REPO = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model's files on disk."""

    id: str
    """Name of the model, as clients use it."""
    path: Path
    """A folder with `config.json`, safetensors and a tokenizer."""
    source: str
    """The source as its user gave it."""
    trust_remote_code: bool = False


def fetch_model(source: str, *, cache_dir: Path | None = None, trust_remote_code: bool = False) -> ModelFiles:
    """Fetch the files of `source`, if they are not local, and return where they are.

    Raises:
        ModelSourceError: the model does not exist, cannot be reached, or fails its checksum.
    """
    cache_dir = cache_dir or default_cache_dir()
    try:
        return _fetch(source, cache_dir, trust_remote_code=trust_remote_code)
    except OSError as error:
        message = (
            f"The files of {source[:200]!r} cannot be read or written: {error}. (The cache folder is {cache_dir}.)"
        )
        raise ModelSourceError(message) from error


def is_hooked_folder(path: Path) -> bool:
    """Tell whether a folder's `config.json` belongs to a HookedTransformer, and not to a transformers model."""
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "model_type" not in config and config.keys() >= _HOOKED_FIELDS


def absolute_source(source: str) -> str:
    """Return a source that means the same in any working directory: a folder or file as an absolute path."""
    path = Path(source).expanduser()
    return source if source in BUILTIN_MODELS or not path.exists() else str(path.absolute())


def _fetch(source: str, cache_dir: Path, *, trust_remote_code: bool) -> ModelFiles:
    if source in BUILTIN_MODELS:
        return ModelFiles(source, _builtin(source, cache_dir), source)
    path = Path(source).expanduser()
    if source.endswith(".gguf"):
        if not path.is_file():
            message = (
                f"The file {source} does not exist. Give the path of a GGUF file, a model folder or a hub repository."
            )
            raise ModelSourceError(message)
        return ModelFiles(path.stem, convert_gguf(path, cache_dir / "converted"), source)
    if path.is_dir():
        _check_folder(path)
        return ModelFiles(path.resolve().name, path.resolve(), source, trust_remote_code)
    if _REPO.fullmatch(source):
        return ModelFiles(source, _hub(source), source, trust_remote_code)
    names = ", ".join(BUILTIN_MODELS)
    message = (
        f"The model {source!r} does not exist. Give a built-in name ({names}), a folder, a .gguf file or a hub "
        "repository (ORGANISATION/NAME)."
    )
    raise ModelSourceError(message)


def _builtin(name: str, cache_dir: Path) -> Path:
    target = cache_dir / "models" / name
    if (target / "config.json").is_file():
        return target
    gguf = fetch_builtin(BUILTIN_MODELS[name], cache_dir / "downloads")
    converted = convert_gguf(gguf, cache_dir / "models", name=name)
    shutil.rmtree(gguf.parent, ignore_errors=True)
    return converted


def _check_folder(path: Path) -> None:
    if not (path / "config.json").is_file():
        message = f"The folder {path} has no config.json, so it is not a model folder of transformers."
        raise ModelSourceError(message)
    if not any(path.glob("*.safetensors")):
        message = f"The folder {path} has no .safetensors file; pickled weights are never loaded. Convert them first."
        raise ModelSourceError(message)


def _hub(repo: str) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 slow import, needed for hub sources only

    try:
        with progress_line(f"Fetching {repo} from the hub"):
            path = Path(snapshot_download(repo, allow_patterns=HUB_FILES))
    except Exception as error:
        failure = hub_failure(error, repo)
        if failure is None:
            raise
        advice = ", or give a local folder or .gguf file" if failure == UNREACHABLE else ""
        message = f"The model {repo!r} cannot be fetched: {failure}{advice}."
        raise ModelSourceError(message) from error
    if not any(path.glob("*.safetensors")):
        message = f"The hub repository {repo} has no safetensors; pickled weights are never loaded."
        raise ModelSourceError(message)
    return path
