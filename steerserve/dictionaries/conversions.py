"""Converts dictionaries of EleutherAI's sparsify and of dictionary_learning to SAELens' configuration and names.

Invalid files raise Python's own errors (KeyError, TypeError, ValueError and others); `layouts.py` names the file.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from steerserve.dictionaries.files import SourceFolder

    ConfigAndTensors = tuple[dict[str, Any], dict[str, Tensor]]

OUTER_CONFIG_FILE = "config.json"
"""Configuration of dictionary_learning, and of a sparsify run beside its dictionaries."""
_VERSION = "6.0.0"
"""Version of SAELens whose form the converted configurations have."""
_SPARSIFY_FOLDER = re.compile(r"(?:.*[._])?(?:layers|h|blocks)[._](\d+)(?:[._](mlp|attn|self_attn|attention))?")
_SUBMODULE = re.compile(r"(resid_post|mlp_out|attention_out|attn_out)(?:_layer)?_(\d+)")
_HOOKS = {
    None: "hook_resid_post",
    "resid_post": "hook_resid_post",
    "mlp": "hook_mlp_out",
    "mlp_out": "hook_mlp_out",
    "attn": "hook_attn_out",
    "self_attn": "hook_attn_out",
    "attention": "hook_attn_out",
    "attn_out": "hook_attn_out",
    "attention_out": "hook_attn_out",
}
_TRAINED_AS = {
    "AutoEncoder": "standard",
    "GatedAutoEncoder": "gated",
    "AutoEncoderTopK": "topk",
    "JumpReluAutoEncoder": "jumprelu",
    "BatchTopKSAE": "jumprelu",
    "MatryoshkaBatchTopKSAE": "jumprelu",
}


def read_sparsify(folder: SourceFolder, config: dict[str, Any], tensors: dict[str, Tensor]) -> ConfigAndTensors:
    """Convert a dictionary that EleutherAI's sparsify wrote.

    Source: SAELens' get_sparsify_config_from_disk and sparsify_disk_loader.
    """
    if config.get("transcode") or config.get("skip_connection") or config.get("activation", "topk") != "topk":
        message = "its transcoders and activations other than topk are not supported"
        raise ValueError(message)
    run = folder.read_json_beside(OUTER_CONFIG_FILE)
    d_in = _whole(config, "d_in")
    d_sae = _whole(config, "num_latents") if config.get("num_latents") else d_in * _whole(config, "expansion_factor")
    decoder = tensors["W_dec"] if "W_dec" in tensors else tensors["decoder.weight"].T
    if d_in * d_sae != decoder.numel():
        message = f"d_in {d_in} and {d_sae} features do not fit the decoder of shape {list(decoder.shape)}"
        raise ValueError(message)
    converted = {
        "W_enc": tensors["W_enc"] if "W_enc" in tensors else tensors["encoder.weight"].T,
        "b_enc": _first(tensors, "b_enc", "encoder.bias", num_zeros=d_sae),
        # The library writes W_dec with a row per feature; SAELens' own reader expects the transpose.
        "W_dec": decoder if decoder.shape == (d_sae, d_in) else decoder.T,
        "b_dec": _first(tensors, "b_dec", "decoder.bias", num_zeros=d_in),
    }
    described = {
        "architecture": "abstopk" if config.get("signed") else "topk",
        "d_in": d_in,
        "d_sae": d_sae,
        "k": config["k"],
        "apply_b_dec_to_input": not config.get("normalize_decoder", False),
    }
    return described | _metadata(_sparsify_hook(folder.name), run.get("model"), run.get("ctx_len")), converted


def read_dictionary_learning(
    _folder: SourceFolder, config: dict[str, Any], tensors: dict[str, Tensor]
) -> ConfigAndTensors:
    """Convert a dictionary that dictionary_learning wrote and whose pickle was saved as a safetensors file.

    Source: SAELens' get_dictionary_learning_config_1_from_hf and dictionary_learning_sae_huggingface_loader_1.
    """
    trainer, buffer = config["trainer"], config.get("buffer") or {}
    kind = trainer["dict_class"]
    if kind not in _TRAINED_AS:
        message = f"trainer.dict_class {str(kind)[:60]!r} is not supported; supported are {', '.join(_TRAINED_AS)}"
        raise ValueError(message)
    architecture = _TRAINED_AS[kind]
    d_sae = _whole(trainer, "dict_size")
    W_enc = tensors["W_enc"] if "W_enc" in tensors else tensors["encoder.weight"].T
    if W_enc.ndim != 2 or W_enc.shape[1] != d_sae:  # noqa: PLR2004 a matrix
        message = f"trainer.dict_size {d_sae} does not fit the encoder of shape {list(W_enc.shape)}"
        raise ValueError(message)
    converted = {
        "W_enc": W_enc,
        "W_dec": tensors["W_dec"] if "W_dec" in tensors else tensors["decoder.weight"].T,
        "b_dec": _first(tensors, "b_dec", "bias", "decoder_bias"),
    }
    theirs_by_name = {
        "b_enc": ("b_enc", "encoder.bias"),
        "b_mag": ("mag_bias",),
        "b_gate": ("gate_bias",),
        "r_mag": ("r_mag",),
    }
    for name, theirs in theirs_by_name.items():
        if any(their in tensors for their in theirs):
            converted[name] = _first(tensors, *theirs)
    if architecture == "jumprelu":
        threshold = tensors["threshold"]
        converted["threshold"] = threshold.expand(d_sae) if threshold.ndim == 0 else threshold
    described = {
        "architecture": architecture,
        "d_in": trainer["activation_dim"],
        "d_sae": d_sae,
        # Of its classes only JumpReLU does not subtract b_dec before it encodes.
        "apply_b_dec_to_input": kind != "JumpReluAutoEncoder",
        **({"k": trainer["k"]} if architecture == "topk" else {}),
    }
    return described | _metadata(_submodule_hook(trainer), trainer.get("lm_name"), buffer.get("ctx_len")), converted


def _metadata(hook_name: str, model_name: object, context_size: object) -> dict[str, Any]:
    values = {"hook_name": hook_name, "model_name": model_name, "context_size": context_size}
    return {"metadata": {"sae_lens_version": _VERSION} | {key: value for key, value in values.items() if value}}


def _sparsify_hook(name: str) -> str:
    if (match := _SPARSIFY_FOLDER.fullmatch(name)) is None:
        message = f"the folder's name is {name!r}; it must name the layer, such as layers.5 or layers.5.mlp"
        raise ValueError(message)
    return f"blocks.{match[1]}.{_HOOKS[match[2]]}"


def _submodule_hook(trainer: Mapping[str, Any]) -> str:
    submodule = trainer.get("submodule_name") or f"resid_post_layer_{trainer['layer']}"
    if (match := _SUBMODULE.fullmatch(str(submodule))) is None:
        message = (
            f"trainer.submodule_name {str(submodule)[:60]!r} is not supported; it must be such as resid_post_layer_5"
        )
        raise ValueError(message)
    return f"blocks.{match[2]}.{_HOOKS[match[1]]}"


def _whole(config: Mapping[str, Any], name: str) -> int:
    value = config[name]
    if not isinstance(value, int) or isinstance(value, bool):
        message = f"{name} is {str(value)[:60]!r}; it must be a whole number"
        raise TypeError(message)
    if value < 1:
        message = f"{name} is {value}; it must be 1 or more"
        raise ValueError(message)
    return value


def _first(tensors: Mapping[str, Tensor], *names: str, num_zeros: int | None = None) -> Tensor:
    """Return the first of these tensors that exists; if none does, `num_zeros` zeros."""
    for name in names:
        if name in tensors:
            return tensors[name]
    if num_zeros is None:
        raise KeyError(names[0])
    return torch.zeros(num_zeros)
