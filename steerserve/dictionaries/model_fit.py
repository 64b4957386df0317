"""Checks a dictionary against the served model: its hook points, its widths, and the model it was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from steerserve.dictionaries.dictionary import width_out
from steerserve.dictionaries.files import refusal
from steerserve.model.lens import official_name
from steerserve.model.names import MLP_IN, STREAM_INTO_MLP, describe_hook_names, plain_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sae_lens import SAE

    from steerserve.model.lens import LensModel

_UNFOLDED = {"expected_average_only_in", "covariance_whitening"}
"""Normalisations that SAELens folds into the weights after training; without the folding they are lost."""
_PROCESSED = ("center_writing_weights", "refactor_factored_attn_matrices")
"""Changes by TransformerLens to the weights of a model on which dictionaries are trained."""
_LARGEST_NORM = 1e30
_MLP_NORM_OUTPUT = ".pre_feedforward_layernorm.output"
"""End of the name, in transformers, of the module output that Gemma Scope 2's transcoders read."""


@dataclass(frozen=True, slots=True)
class ModelFit:
    """How a dictionary fits a model."""

    hook_name: str
    """Hook point at which edits are made."""
    hook_in: str | None
    """Hook point that is read, if it is another one; otherwise None."""
    doubts: tuple[str, ...]
    """Reasons against using the dictionary, too weak to refuse it; each continues a sentence after its name."""


def check_model_fit(
    sae: SAE[Any], source: str, lens: LensModel, model_names: Iterable[str], *, force: bool
) -> ModelFit:
    """Check that a dictionary may be used with a model.

    Args:
        sae: The dictionary.
        source: The source of the dictionary, for messages.
        lens: The served model.
        model_names: The names of the model; never empty.
        force: Accept a dictionary that was trained on a model of another name.

    Raises:
        DictionarySourceError: the dictionary does not fit; the message says if `force` would help.
    """
    metadata = sae.cfg.metadata
    hook_in = _read_hook_name(metadata.hook_name or "", metadata.hf_hook_name)
    hook_name = metadata.hook_name_out or hook_in
    is_transcoder = hook_name != hook_in
    offered = {
        ("reads", hook_in): lens.readable if is_transcoder else lens.hook_names,
        ("writes", hook_name): lens.hook_names,
    }
    widths = {("reads", hook_in): sae.cfg.d_in, ("writes", hook_name): width_out(sae)}
    for (does, name), names in offered.items():
        if name not in names:
            reason = f"{does} the hook point {name[:100]!r}, which this server does not offer on {lens.id}"
            raise refusal(source, f"{reason}. It offers {describe_hook_names(names)}")
    for (does, name), width in widths.items():
        if width != lens.width(name):
            reason = f"{does} vectors of width {width}, but those of {lens.id} at {name} have width {lens.width(name)}"
            raise refusal(source, f"{reason}: it was trained on another model")
    if lens.readable.index(hook_in) > lens.readable.index(hook_name):
        reason = f"reads {hook_in}, which a forward pass reaches only after {hook_name}, where it writes"
        raise refusal(source, reason)
    objections = _objections(sae, lens, tuple(model_names))
    if objections and not force:
        raise refusal(source, f"{'; and it '.join(objections)}. Send force: true to load it anyway")
    return ModelFit(
        hook_name,
        hook_in if is_transcoder else None,
        (*objections, *_remarks(sae, hook_in, is_processed=lens.is_processed)),
    )


def recorded_norms(sae: SAE[Any], measured: tuple[float, float], source: str) -> tuple[float, float]:
    """Return the median and mean norm that the dictionary records, or the measured ones if it records none.

    Raises:
        DictionarySourceError: the recorded values are not positive numbers.
    """
    recorded = sae.cfg.metadata.steerserve
    if not isinstance(recorded, dict):
        return measured
    median, mean = (
        recorded.get(name, default) for name, default in zip(("median_norm", "mean_norm"), measured, strict=True)
    )
    if not (_is_norm(median) and _is_norm(mean)):
        raise refusal(source, f"must have positive norms in metadata.steerserve, not {str([median, mean])[:100]}")
    return float(median), float(mean)


def _read_hook_name(hook_name: str, hf_hook_name: object) -> str:
    """Return the hook point that is read, in TransformerLens' names.

    Gemma Scope 2's transcoders read the input of the MLP: the output of the norm before it, as their metadata says in
    transformers' names. SAELens calls it `hook_mlp_in`, which in TransformerLens is the stream before the norm.
    """
    if hook_name.endswith(f".{STREAM_INTO_MLP}") and str(hf_hook_name).endswith(_MLP_NORM_OUTPUT):
        return hook_name.removesuffix(STREAM_INTO_MLP) + MLP_IN
    return hook_name


def _is_norm(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < _LARGEST_NORM


def _objections(sae: SAE[Any], lens: LensModel, model_names: tuple[str, ...]) -> list[str]:
    objections = []
    made_for = sae.cfg.metadata.model_name
    if made_for and _spellings(made_for).isdisjoint(set().union(*map(_spellings, model_names))):
        objections.append(f"was made for the model {made_for[:100]!r}, and this server serves {lens.id!r}")
    if sae.cfg.normalize_activations in _UNFOLDED:
        how = sae.cfg.normalize_activations
        objections.append(f"was trained on scaled activations ({how}), and the scale is not folded into its weights")
    return objections


def _spellings(name: str) -> set[str]:
    return {plain_name(name), plain_name(official_name(name))}


def _remarks(sae: SAE[Any], hook_in: str, *, is_processed: bool) -> list[str]:
    processing = sae.cfg.metadata.model_from_pretrained_kwargs
    # The input of an MLP contains the norm's weights, unless they were folded into the MLP's own.
    changes = (*_PROCESSED, "fold_ln") if hook_in.endswith(f".{MLP_IN}") else _PROCESSED
    processed = [name for name in changes if isinstance(processing, dict) and processing.get(name) is True]
    if bool(processed) == is_processed:
        return []
    if is_processed:
        return ["was trained on unprocessed weights, and TransformerLens has processed the weights of this model"]
    return [f"was trained on weights that TransformerLens had processed ({', '.join(processed)}), unlike this model's"]
