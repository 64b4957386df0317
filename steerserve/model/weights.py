"""Loads a model's files as a transformers model, and chooses the device and the number format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from steerserve.core.errors import ModelSourceError
from steerserve.model.fitness import check_complete

if TYPE_CHECKING:
    from steerserve.model.source import ModelFiles


def load_config(files: ModelFiles) -> Any:  # noqa: ANN401 transformers' configs share no typed base
    """Read a model's configuration.

    Raises:
        ModelSourceError: transformers does not support the model.
    """
    try:
        return AutoConfig.from_pretrained(files.path, local_files_only=True, trust_remote_code=files.trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = (
            f"transformers does not support the model in {files.path}: {first_line(error)} "
            "(models with code of their own need model.trust_remote_code: true in the configuration)"
        )
        raise ModelSourceError(message) from error


def load_weights(files: ModelFiles, dtype: torch.dtype) -> Any:  # noqa: ANN401
    """Load the model with fused attention, or with plain attention if the architecture has no fused one.

    Raises:
        ModelSourceError: the files are damaged.
    """
    for attention in ("sdpa", "eager"):
        try:
            hf_model, info = AutoModelForCausalLM.from_pretrained(
                files.path,
                output_loading_info=True,
                dtype=dtype,
                attn_implementation=attention,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=files.trust_remote_code,
            )
        except Exception as error:
            # transformers raises many kinds of errors: OSError, KeyError, SafetensorError, RuntimeError on shapes.
            if attention == "sdpa" and "scaled_dot_product_attention" in str(error):
                continue
            message = f"The model in {files.path} cannot be loaded: {first_line(error)}"
            raise ModelSourceError(message) from error
        check_complete(files, info)
        return hf_model
    message = f"The model in {files.path} cannot be loaded with any kind of attention."
    raise ModelSourceError(message)


def eos_ids(hf_model: Any) -> frozenset[int]:  # noqa: ANN401
    """Return the tokens that end a generation, from the model's two configurations."""
    ids: set[int] = set()
    for config in (hf_model.config, hf_model.generation_config):
        eos = getattr(config, "eos_token_id", None)
        ids |= {eos} if isinstance(eos, int) else set(eos or ())
    return frozenset(ids)


def pick_device(name: str) -> torch.device:
    """Return the device for `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        ModelSourceError: the device does not exist.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        message = f"model.device is {name}, but PyTorch finds {torch.cuda.device_count()} CUDA devices. Use auto."
        raise ModelSourceError(message)
    return device


def pick_dtype(dtype: torch.dtype | str, device: torch.device) -> torch.dtype:
    """Return the number format for `auto` or a format's name."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    named: torch.dtype = getattr(torch, dtype)
    return named


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the name of its class."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
