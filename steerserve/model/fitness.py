"""Checks whether a model can be served, before or while its weights are loaded.

Each check raises ModelSourceError with a sentence that says what would be right.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import psutil
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from steerserve.core.errors import ModelSourceError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from steerserve.model.source import ModelFiles

_SUPPORTED_LAYER_TYPES = {"full_attention", "sliding_attention"}
_MEMORY_MARGIN = 1.1


def check_kind(files: ModelFiles, config: Any) -> None:  # noqa: ANN401
    """Refuse models that transformers would load as a language model although they were trained as something else."""
    listed = getattr(config, "architectures", None) or ()
    named = {listed} if isinstance(listed, str) else set(listed)
    usual = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, ())
    generating = {usual} if isinstance(usual, str) else set(usual)
    own_code = files.trust_remote_code and hasattr(config, "auto_map")
    if named and not named & generating and not own_code:
        message = f"{files.id} is a {', '.join(sorted(named))}, not a causal language model, so it cannot generate."
        raise ModelSourceError(message)


def check_layers(config: Any) -> None:  # noqa: ANN401
    """Refuse layer types that the cache does not support."""
    unsupported = set(getattr(config.get_text_config(), "layer_types", None) or ()) - _SUPPORTED_LAYER_TYPES
    if unsupported:
        message = (
            f"The model has layers of type {', '.join(sorted(unsupported))}; "
            f"this server supports {', '.join(sorted(_SUPPORTED_LAYER_TYPES))}."
        )
        raise ModelSourceError(message)


def check_memory(path: Path, config: Any, device: torch.device, dtype: torch.dtype) -> None:  # noqa: ANN401
    """Refuse a model that does not fit in memory: weights in `dtype`, plus the embedding's packed copy on a CPU."""
    num_values = num_stored(path)
    text_config = config.get_text_config()
    if getattr(config, "tie_word_embeddings", False):
        num_values += text_config.vocab_size * text_config.hidden_size
    check_fits(num_values, device, dtype)


def num_stored(path: Path) -> int:
    """Count the values in a folder's safetensors."""
    num_values = 0
    for file in path.glob("*.safetensors"):
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            try:
                header = json.loads(opened.read(length) if length < file.stat().st_size else b"")
                shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
                num_values += sum(torch.Size(shape).numel() for shape in shapes)
            except (ValueError, AttributeError, TypeError, KeyError, RecursionError) as error:
                message = f"{file} is damaged: its header cannot be read. Fetch it again."
                raise ModelSourceError(message) from error
    return num_values


def check_fits(num_values: int, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse that many values if the memory of the device is too small for them."""
    needed = int(num_values * dtype.itemsize * _MEMORY_MARGIN)
    free = free_bytes(device)
    if needed > free:
        message = (
            f"The model needs about {needed / 1e9:.1f} GB on {device}, and {free / 1e9:.1f} GB are free. "
            "Use a smaller model, free memory, or set model.dtype to bfloat16."
        )
        raise ModelSourceError(message)


def check_complete(files: ModelFiles, info: Mapping[str, Any]) -> None:
    """Refuse weights that do not fill the model: transformers would fill the rest with random numbers."""
    for kind in ("missing_keys", "mismatched_keys"):
        if names := sorted(str(name) for name in info.get(kind) or ()):
            message = (
                f"The weights in {files.path} do not fit its config.json ({kind.replace('_', ' ')}: {names[0]}"
                f"{f' and {len(names) - 1} more' if names[1:] else ''}). Fetch the model again."
            )
            raise ModelSourceError(message)


def free_bytes(device: torch.device) -> int:
    """Return the free memory of a device."""
    return int(psutil.virtual_memory().available if device.type == "cpu" else torch.cuda.mem_get_info(device)[0])
