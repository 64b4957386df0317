"""From configuration and tensors to a SAELens SAE that works, or a refusal: what can be said without the model.

Whether it may be used with a model is decided in `model_fit.py`.
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
_NUM_TRIED = 2
_UNSUPPORTED = {"temporal": "its activations depend on the tokens before"}
_NAMES = ("hook_name", "hook_name_out", "hf_hook_name", "model_name")
"""Of the metadata."""
_SIZES = ("d_in", "d_out", "d_sae")
_SERVED_AS = {"device": "meta", "dtype": "float32"}
"""Built without memory first: its tensors are those that were read."""
_PROCESSING = "model_from_pretrained_kwargs"


def build_sae(stored: StoredDictionary, device: torch.device) -> SAE[Any]:
    """Build the SAE in float32, and try it once. Takes the tensors out of `stored`, so that memory is held once.

    Raises:
        DictionarySourceError: a value, a tensor or the architecture is not what SAELens takes.
    """
    config = read_config(stored.config, stored.source)
    processing = config["metadata"].pop(_PROCESSING, None)  # SAELens warns of it each time; `model_fit.py` says it once
    try:
        sae = SAE.from_dict({**config, **_SERVED_AS})
        sae.process_state_dict_for_loading(stored.tensors)
    except Exception as error:  # SAELens raises what its parts raise
        raise _cannot_load(stored.source, error) from error
    if processing is not None:
        sae.cfg.metadata[_PROCESSING] = processing
    _check_fields(sae, stored.source)
    _check_shapes(sae, stored.tensors, stored.source)
    state = {}
    for name in list(stored.tensors):
        # Copied, since a parsed tensor may start anywhere in a file's bytes and arithmetic likes aligned memory.
        tensor = stored.tensors.pop(name)
        state[name] = tensor.to(device, torch.float32, copy=True, memory_format=torch.contiguous_format)
    sae.load_state_dict(state, assign=True)
    sae = sae.to(dtype=torch.float32, device=str(device)).eval().requires_grad_(requires_grad=False)
    for name, tensor in sae.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise refusal(stored.source, f"holds values in {name} that are not finite")
    # The heads are in a row at `attn.hook_z` here, where SAELens takes them apart.
    sae.turn_off_forward_pass_hook_z_reshaping()
    # SAELens' normalisation closes over the SAE, which would then live until the next full garbage collection.
    type(sae)._setup_activation_normalization(weakref.proxy(sae))  # noqa: SLF001 no public name
    _try_once(sae, stored.source, device)
    return sae


def read_config(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Bring a configuration of any SAELens version into its present form, and check what it names and its sizes.

    Raises:
        DictionarySourceError: it is not one that can be served.
    """
    try:
        found: dict[str, Any] = handle_config_defaulting(dict(config))
    except Exception as error:  # SAELens raises what its parts raise
        raise _cannot_load(source, error) from error
    architecture = str(found.get("architecture"))[:60]
    if architecture not in SAE_CLASS_REGISTRY or architecture in _UNSUPPORTED:
        reason = f": {_UNSUPPORTED[architecture]}" if architecture in _UNSUPPORTED else ""
        known = ", ".join(sorted(SAE_CLASS_REGISTRY.keys() - _UNSUPPORTED.keys()))
        raise refusal(
            source, f"has the architecture {architecture!r}, which is not supported{reason}. Supported are {known}"
        )
    is_transcoder = issubclass(SAE_CLASS_REGISTRY[architecture][0], Transcoder)
    for name in _SIZES if is_transcoder else ("d_in", "d_sae"):
        size = found.get(name)
        if type(size) is not int or not 0 < size < _LARGEST_SIZE:
            raise refusal(source, f"must have a whole number of 1 to {_LARGEST_SIZE - 1} as {name}")
    metadata = _read_metadata(found.get("metadata") or {}, found.get("hook_name"), source)
    written = metadata.get("hook_name_out")
    if is_transcoder and not written:
        reason = "is a transcoder, which reads one hook point and writes another, and does not name the other"
        raise refusal(source, f"{reason}: its metadata needs hook_name_out")
    if not is_transcoder and written not in {None, "", metadata.get("hook_name")}:
        raise refusal(source, f"is no transcoder ({architecture}), and names another hook point as hook_name_out")
    # Under an older version it would be taken for the older form that it is no longer in.
    return {**found, "metadata": {**metadata, "sae_lens_version": sae_lens.__version__}}


def _read_metadata(metadata: object, hook_name: object, source: str) -> dict[str, Any]:
    if not isinstance(metadata, dict):
        raise refusal(source, "has metadata that must be an object")
    reason = None
    if taken := [name for name in metadata if hasattr(SAEMetadata, name)]:
        reason = f"cannot have the key {taken[0]!r}"  # it would replace a method of SAELens'
    elif wrong := [name for name in _NAMES if not isinstance(metadata.get(name), str | None)]:
        reason = f"must have a string as {wrong[0]}"
    if reason is not None:
        raise refusal(source, f"has metadata that {reason}")
    named = {"hook_name": hook_name} if isinstance(hook_name, str) else {}
    return {**named, **metadata}


def _check_fields(sae: SAE[Any], source: str) -> None:
    """Check the other values by the types that SAELens gives them: its code would fail on them in mid-generation."""
    for field in dataclasses.fields(sae.cfg):
        value, kinds = getattr(sae.cfg, field.name), set(get_args(field.type)) or {field.type}
        wanted = None
        if int in kinds and field.name not in _SIZES:
            is_count = type(value) is int and 0 < value <= sae.cfg.d_sae
            if not is_count and not (value is None and NoneType in kinds):
                wanted = f"a whole number of 1 to d_sae ({sae.cfg.d_sae})"
        elif bool in kinds and not isinstance(value, bool):
            wanted = "true or false"
        elif float in kinds and (isinstance(value, bool) or not isinstance(value, int | float)):
            wanted = "a number"
        elif isinstance(field.default, str) and not isinstance(value, str):
            wanted = "a string"
        if wanted is not None:
            raise refusal(source, f"must have {wanted} as {field.name}")


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
            reason = f"has {name} of the shape {shape}, where {expected[name]} fits its {sizes}"
        elif not tensors[name].is_floating_point():
            reason = f"has {name} in {tensors[name].dtype}, which is no floating-point format"
        if reason is not None:
            raise refusal(source, reason)


@torch.inference_mode()
def _try_once(sae: SAE[Any], source: str, device: torch.device) -> None:
    """Encode and decode something, so that what SAELens cannot compute fails here and not in a request."""
    x = torch.ones(_NUM_TRIED, sae.cfg.d_in, device=device)
    x[0] = torch.linspace(-1, 1, sae.cfg.d_in, device=device)
    try:
        acts = sae.encode(x)
        decoded = sae.decode(acts)
    except Exception as error:  # whatever SAELens and torch raise
        raise _cannot_load(source, error) from error
    is_right = acts.shape == (_NUM_TRIED, sae.cfg.d_sae) and decoded.shape == (_NUM_TRIED, width_out(sae))
    if not is_right or not bool(torch.isfinite(acts).all() & torch.isfinite(decoded).all()):
        raise refusal(source, "does not encode and decode to finite values of its own sizes")


def _cannot_load(source: str, error: Exception) -> DictionarySourceError:
    reason = next(iter(str(error).splitlines()), "")[:200] or type(error).__name__
    return refusal(source, f"cannot be loaded by SAELens: {reason}")
