"""Converts a GGUF file, once, to a folder of safetensors that loads in a second."""

from __future__ import annotations

import copy
import shutil
import tempfile
from pathlib import Path

from rich.console import Console

from steerserve.core.errors import ModelSourceError
from steerserve.model.download import sha256_of


def convert_gguf(gguf: Path, folder: Path, *, name: str | None = None) -> Path:
    """Convert `gguf` to `folder/name` (by default named by its SHA-256) unless that exists; return its path.

    The folder appears whole or not at all.

    Raises:
        ModelSourceError: the file is not GGUF, is damaged, or has an architecture that transformers cannot read.
    """
    with gguf.open("rb") as file:
        if file.read(4) != b"GGUF":
            message = f"{gguf} is not a GGUF file (it does not begin with the bytes GGUF)."
            raise ModelSourceError(message)
    target = folder / (name or f"{gguf.stem}-{sha256_of(gguf)[:16]}")
    if (target / "config.json").is_file():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder, prefix=".converting-"))
    try:
        Console(stderr=True).print(f"Converting {gguf.name} to safetensors, once", soft_wrap=True)
        _convert(gguf, scratch)
        try:
            scratch.rename(target)
        except OSError:
            if not (target / "config.json").is_file():  # not another process that converted it meanwhile
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _convert(gguf: Path, out: Path) -> None:
    import torch  # noqa: PLC0415 slow imports, needed only for a conversion
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415
    from transformers.utils import logging as transformers_logging  # noqa: PLC0415

    transformers_logging.disable_progress_bar()  # the conversion has one of its own
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name, "local_files_only": True}
    try:
        loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(**source)
    except Exception as error:
        # transformers and gguf raise many kinds of errors on files they cannot read.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        message = f"{gguf} cannot be read: {reason}"
        raise ModelSourceError(message) from error
    # A model loaded from GGUF cannot be saved: build the same class without the quantization entry.
    config = copy.deepcopy(loaded.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = type(loaded)(config)
    plain.load_state_dict(loaded.state_dict())
    plain.generation_config = loaded.generation_config
    plain.save_pretrained(out)
    tokenizer.save_pretrained(out)
