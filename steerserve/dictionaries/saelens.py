"""Builds a SAELens SAE from configuration and tensors, and checks everything that needs no model.

`model_fit.py` checks whether it fits the served model.
"""

from __future__ import annotations

import dataclasses
import weakref
from types import NoneType
from typing import TYPE_CHECKING, Any, get_args

import sae_lens
import torch
from sae_lens import SAE
from sae_lens.loading.pretrained_sae_loaders import handle_config_defaulting
from sae_lens.registry import SAE_CLASS_REGISTRY
from sae_lens.saes.sae import SAEMetadata
from sae_lens.saes.transcoder import Transcoder

from steerserve.dictionaries.dictionary import width_out
from steerserve.dictionaries.files import refusal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from steerserve.core.errors import DictionarySourceError
    from steerserve.dictionaries.layouts import StoredDictionary

_LARGEST_SIZE = 1 << 31
_NUM_TEST_ROWS = 2
_UNSUPPORTED = {"temporal": "its activations depend on the tokens before"}
_NAMES = ("hook_name", "hook_name_out", "hf_hook_name", "model_name")
"""Entries of the metadata that are strings."""
_SIZES = ("d_in", "d_out", "d_sae")
_SERVED_AS = {"device": "meta", "dtype": "float32"}
"""The SAE is built without memory; its tensors are then those that were read."""
_PROCESSING = "model_from_pretrained_kwargs"


def build_sae(stored: StoredDictionary, device: torch.device) -> SAE[Any]:
    """Build the SAE in float32, and run it once. Takes the tensors out of `stored`, to hold the memory only once.

    Raises:
        DictionarySourceError: SAELens does not support a value, a tensor or the architecture.
    """
    config = read_config(stored.config, stored.source)
    processing = config["metadata"].pop(_PROCESSING, None)  # SAELens warns of it each time; `model_fit.py` does once
    try:
        sae = SAE.from_dict({**config, **_SERVED_AS})
        sae.process_state_dict_for_loading(stored.tensors)
    except Exception as error:  # SAELens raises whatever its parts raise
        raise _cannot_load(stored.source, error) from error
    if processing is not None:
        sae.cfg.metadata[_PROCESSING] = processing
    _check_fields(sae, stored.source)
    _check_shapes(sae, stored.tensors, stored.source)
    state = {}
    for name in list(stored.tensors):
        # Copied, since a parsed tensor may start at any byte of the file, and arithmetic is faster on aligned memory.
        tensor = stored.tensors.pop(name)
        state[name] = tensor.to(device, torch.float32, copy=True, memory_format=torch.contiguous_format)
    sae.load_state_dict(state, assign=True)
    sae = sae.to(dtype=torch.float32, device=str(device)).eval().requires_grad_(requires_grad=False)
    for name, tensor in sae.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise refusal(stored.source, f"holds values in {name} that are not finite")
    # The heads are concatenated at `attn.hook_z` here, whereas SAELens separates them.
    sae.turn_off_forward_pass_hook_z_reshaping()
    # SAELens' normalisation closes over the SAE, which would then live until the next full garbage collection.
    type(sae)._setup_activation_normalization(weakref.proxy(sae))  # noqa: SLF001 no public name
    _try_once(sae, stored.source, device)
    return sae


def read_config(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Convert a configuration of any SAELens version to the present form, and check its names and sizes.

    Raises:
        DictionarySourceError: the configuration is invalid or not supported.
    """
    try:
        present: dict[str, Any] = handle_config_defaulting(dict(config))
    except Exception as error:  # SAELens raises whatever its parts raise
        raise _cannot_load(source, error) from error
    architecture = str(present.get("architecture"))[:60]
    if architecture not in SAE_CLASS_REGISTRY or architecture in _UNSUPPORTED:
        reason = f": {_UNSUPPORTED[architecture]}" if architecture in _UNSUPPORTED else ""
        supported = ", ".join(sorted(SAE_CLASS_REGISTRY.keys() - _UNSUPPORTED.keys()))
        raise refusal(
            source, f"has the architecture {architecture!r}, which is not supported{reason}. Supported are {supported}"
        )
    is_transcoder = issubclass(SAE_CLASS_REGISTRY[architecture][0], Transcoder)
    for name in _SIZES if is_transcoder else ("d_in", "d_sae"):
        size = present.get(name)
        if type(size) is not int or not 0 < size < _LARGEST_SIZE:
            raise refusal(
                source, f"has {str(size)[:60]!r} as {name}; it must be a whole number of 1 to {_LARGEST_SIZE - 1}"
            )
    metadata = _read_metadata(present.get("metadata") or {}, present.get("hook_name"), source)
    written = metadata.get("hook_name_out")
    if is_transcoder and not written:
        reason = "is a transcoder that does not name the hook point that it writes: its metadata needs hook_name_out"
        raise refusal(source, reason)
    if not is_transcoder and written not in {None, "", metadata.get("hook_name")}:
        raise refusal(
            source,
            f"is not a transcoder ({architecture}), but its hook_name_out is another hook point than its hook_name",
        )
    # Marked with an older version, the configuration would be converted a second time.
    return {**present, "metadata": {**metadata, "sae_lens_version": sae_lens.__version__}}


def _read_metadata(metadata: object, hook_name: object, source: str) -> dict[str, Any]:
    if not isinstance(metadata, dict):
        raise refusal(source, f"has {str(metadata)[:60]!r} as metadata, which must be an object")
    reason = None
    if taken := [name for name in metadata if hasattr(SAEMetadata, name)]:
        reason = f"cannot have the key {taken[0]!r}"  # it would replace a method of SAELens' class
    elif wrong := [name for name in _NAMES if not isinstance(metadata.get(name), str | None)]:
        reason = f"must have a string as {wrong[0]}"
    if reason is not None:
        raise refusal(source, f"has metadata that {reason}")
    hook = {"hook_name": hook_name} if isinstance(hook_name, str) else {}
    return {**hook, **metadata}


def _check_fields(sae: SAE[Any], source: str) -> None:
    """Check the other values by SAELens' types: invalid values would make its code fail during generation."""
    for field in dataclasses.fields(sae.cfg):
        value, kinds = getattr(sae.cfg, field.name), set(get_args(field.type)) or {field.type}
        expected_type = None
        if int in kinds and field.name not in _SIZES:
            is_count = type(value) is int and 0 < value <= sae.cfg.d_sae
            if not is_count and not (value is None and NoneType in kinds):
                expected_type = f"a whole number of 1 to d_sae ({sae.cfg.d_sae})"
        elif bool in kinds and not isinstance(value, bool):
            expected_type = "true or false"
        elif float in kinds and (isinstance(value, bool) or not isinstance(value, int | float)):
            expected_type = "a number"
        elif isinstance(field.default, str) and not isinstance(value, str):
            expected_type = "a string"
        if expected_type is not None:
            raise refusal(source, f"has {str(value)[:60]!r} as {field.name}, which must be {expected_type}")


def _check_shapes(sae: SAE[Any], tensors: Mapping[str, Tensor], source: str) -> None:
    sizes = " and ".join(f"{name} {getattr(sae.cfg, name)}" for name in _SIZES if hasattr(sae.cfg, name))
    expected = {name: list(tensor.shape) for name, tensor in sae.state_dict().items()}
    for name in sorted(expected.keys() | tensors.keys()):
        reason = None
        if name not in tensors:
            reason = f"has no tensor {name}, which its architecture ({sae.cfg.architecture()}) needs"
        elif name not in expected:
            reason = f"has a tensor {name[:60]!r}, which its architecture ({sae.cfg.architecture()}) does not have"
        elif list(tensors[name].shape) != expected[name]:
            shape = list(tensors[name].shape)
            reason = f"has {name} of shape {shape}, but its {sizes} need shape {expected[name]}"
        elif not tensors[name].is_floating_point():
            reason = f"has {name} in {tensors[name].dtype}, which is not a floating-point format"
        if reason is not None:
            raise refusal(source, reason)


@torch.inference_mode()
def _try_once(sae: SAE[Any], source: str, device: torch.device) -> None:
    """Encode and decode two rows, so that an SAE that SAELens cannot compute fails here and not in a request."""
    x = torch.ones(_NUM_TEST_ROWS, sae.cfg.d_in, device=device)
    x[0] = torch.linspace(-1, 1, sae.cfg.d_in, device=device)
    try:
        acts = sae.encode(x)
        decoded = sae.decode(acts)
    except Exception as error:  # any error of SAELens and torch
        raise _cannot_load(source, error) from error
    is_right = acts.shape == (_NUM_TEST_ROWS, sae.cfg.d_sae) and decoded.shape == (_NUM_TEST_ROWS, width_out(sae))
    if not is_right or not bool(torch.isfinite(acts).all() & torch.isfinite(decoded).all()):
        raise refusal(source, "does not encode and decode to finite values of its configured sizes")


def _cannot_load(source: str, error: Exception) -> DictionarySourceError:
    reason = next(iter(str(error).splitlines()), "")[:200] or type(error).__name__
    return refusal(source, f"cannot be loaded by SAELens: {reason}")
