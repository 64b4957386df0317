"""A dictionary: a SAELens SAE bound to hook points of the served model.

A transcoder reads one hook point and is edited at another, whose values it reconstructs. Any other dictionary reads and
is edited at the same hook point.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from sae_lens.saes.gated_sae import GatedSAE
from sae_lens.saes.jumprelu_sae import JumpReLUSAE
from sae_lens.saes.standard_sae import StandardSAE
from sae_lens.saes.transcoder import (
    JumpReLUSkipTranscoder,
    JumpReLUTranscoder,
    SkipTranscoder,
    Transcoder,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jaxtyping import Float
    from sae_lens import SAE
    from torch import Tensor

_JUMPRELU = (JumpReLUSAE, JumpReLUTranscoder)
_POINTWISE = (
    StandardSAE,
    JumpReLUSAE,
    GatedSAE,
    Transcoder,
    SkipTranscoder,
    JumpReLUTranscoder,
    JumpReLUSkipTranscoder,
)
_RESCALED = frozenset({"constant_norm_rescale", "layer_norm"})
"""Normalisations that scale each input to the length sqrt(d_in)."""
_OPEN = -torch.inf


@dataclass(frozen=True, slots=True)
class FeatureColumns:
    """The weights of some features: `act = max(pre * gain + bias, 0)` if the gate is open, else 0.

    `pre = x . encoder`, and the gate is open if `pre + gate_bias > threshold`.
    """

    encoder: Float[Tensor, "features d_in"]
    gain: Float[Tensor, " features"]
    bias: Float[Tensor, " features"]
    gate_bias: Float[Tensor, " features"]
    threshold: Float[Tensor, " features"]
    decoder: Float[Tensor, "features d_out"]


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Dictionary:
    """A loaded dictionary. Its contents never change; another version is another object."""

    id: str
    hook_name: str
    """Hook point at which edits are made."""
    sae: SAE[Any]
    """The SAE in float32, on the model's device. Engine thread only: SAELens keeps scratch values on it."""
    sha256: str
    """SHA-256 of the weights file."""
    contents: str
    """SHA-256 of all that decides what an edit does: weights, configuration and norms (`loader._contents`)."""
    zero_directions: frozenset[int]
    """Features whose decoder row is zero, so that they have no direction to remove."""
    source: str
    stored_dtype: str
    is_default: bool
    report: Mapping[str, Any] | None
    """Measurements of its training; None if the dictionary has no report."""
    median_norm: float
    """Median norm of the vectors at `hook_name`, without attention sinks and special tokens."""
    mean_norm: float
    """Mean norm of the same vectors."""
    hook_in: str | None = None
    """Hook point that a transcoder reads; None for any other dictionary, which reads `hook_name`."""
    warnings: tuple[str, ...] = ()
    """Doubts about using the dictionary with this model, as sentences; it was loaded in spite of them."""

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return int(self.sae.cfg.d_sae)

    @property
    def read_hook_name(self) -> str:
        """The hook point whose vectors `encode` takes."""
        return self.hook_in or self.hook_name

    @property
    def hook_names(self) -> tuple[str, ...]:
        """The hook points that a reading needs: the one for `encode`, and the one at which sinks are recognised."""
        return tuple(dict.fromkeys((self.read_hook_name, self.hook_name)))

    @property
    def d_in(self) -> int:
        """Width of the vectors that it reads."""
        return int(self.sae.cfg.d_in)

    @property
    def d_out(self) -> int:
        """Width of the vectors that it writes."""
        return width_out(self.sae)

    @property
    def architecture(self) -> str:
        """SAELens' name of the architecture."""
        return str(self.sae.cfg.architecture())

    @property
    def is_pointwise(self) -> bool:
        """Whether a feature's activation needs only its own column: no competition, no normalised input."""
        return self.sae.cfg.normalize_activations not in _RESCALED and type(self.sae) in _POINTWISE

    @property
    def _is_rescaled(self) -> bool:
        """Whether its output is scaled back by the input's norm; SAELens does not scale the output of transcoders."""
        return self.sae.cfg.normalize_activations in _RESCALED and not isinstance(self.sae, Transcoder)

    def encode(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_sae"]:
        """Return all features' activations, computed by SAELens."""
        acts: Tensor = self.sae.encode(x)
        return acts

    def decode(self, x: Float[Tensor, "rows d_in"], acts: Float[Tensor, "rows d_sae"]) -> Float[Tensor, "rows d_out"]:
        """Return the reconstruction from these activations of the input `x`, computed by SAELens.

        A dictionary that normalises its input keeps the input's statistics on itself for the next decode, so they are
        set again. The output of a transcoder's skip connection is part of the reconstruction.
        """
        self.sae.process_sae_in(x)
        decoded: Tensor = self.sae.decode(acts)
        return decoded + x @ self.sae.W_skip.T if isinstance(self.sae, SkipTranscoder) else decoded

    def directions(self, features: Tensor) -> Float[Tensor, "features d_out"]:
        """Return what one unit of each activation adds to the reconstruction, input normalisation aside."""
        sae: Any = self.sae
        rows: Tensor = sae.W_dec.detach()[features]
        if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
            rows = torch.nn.functional.normalize(rows, dim=-1)
        return rows

    def gains(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, " rows"]:
        """Return the factors of `directions` for the inputs `x`: 1, unless the input is normalised."""
        if not self._is_rescaled:
            return torch.ones_like(x[:, 0])
        feature = self.sae.W_dec.detach().norm(dim=-1).argmax()
        no_acts = torch.zeros(len(x), self.d_sae, dtype=x.dtype, device=x.device)
        one_act = no_acts.clone()
        one_act[:, feature] = 1.0
        [direction] = self.directions(feature[None])
        # For a given input the decoder scales all directions by the same factor, so one feature shows it.
        gains: Tensor = (self.decode(x, one_act) - self.decode(x, no_acts)) @ direction / direction.square().sum()
        return gains

    def change_norm(self, feature: int) -> float:
        """Return the norm of what one unit of a feature's activation adds; the mean over tokens if it varies."""
        norm = float(self.directions(torch.tensor([feature], device=self.sae.W_dec.device)).norm())
        return norm * (self.mean_norm / math.sqrt(self.d_in) if self._is_rescaled else 1.0)

    def columns(self, features: Sequence[int]) -> FeatureColumns:
        """Return the weights of these features; only for a pointwise dictionary.

        `b_dec` is folded into the biases; transcoders, whose `b_dec` has the other width, never subtract it.
        Source: `encode` of SAELens' StandardSAE, JumpReLUSAE, GatedSAE and transcoders.
        """
        sae: Any = self.sae
        index = torch.as_tensor(features, device=sae.W_enc.device)
        encoder = sae.W_enc.detach()[:, index].T.contiguous()
        decoder = sae.W_dec.detach()[index].contiguous()
        offset = torch.zeros_like(encoder[:, 0])
        if sae.cfg.apply_b_dec_to_input:
            offset = -(encoder.double() @ sae.b_dec.detach().double()).float()
        gain = torch.ones_like(offset)
        threshold = torch.full_like(offset, _OPEN)
        if isinstance(sae, GatedSAE):
            gain = sae.r_mag.detach()[index].exp()
            bias = gain * offset + sae.b_mag.detach()[index]
            return FeatureColumns(
                encoder, gain, bias, offset + sae.b_gate.detach()[index], torch.zeros_like(offset), decoder
            )
        bias = offset + sae.b_enc.detach()[index]
        if isinstance(sae, _JUMPRELU):
            threshold = sae.threshold.detach()[index]
        return FeatureColumns(encoder, gain, bias, bias, threshold, decoder)

    def as_json(self) -> dict[str, Any]:
        """Return the dictionary object of the API."""
        metadata = self.sae.cfg.metadata
        return {
            "id": self.id,
            "object": "dictionary",
            "hook": self.hook_name,
            **({} if self.hook_in is None else {"hook_in": self.hook_in}),
            "architecture": self.architecture,
            "d_in": self.d_in,
            **({} if self.hook_in is None else {"d_out": self.d_out}),
            "d_sae": self.d_sae,
            "dtype": self.stored_dtype,
            "model": metadata.model_name,
            "source": self.source,
            "sha256": self.sha256,
            "default": self.is_default,
            "report": dict(self.report) if self.report is not None else None,
            "statistics": {"median_norm": self.median_norm, "mean_norm": self.mean_norm},
            "warnings": list(self.warnings),
        }


def width_out(sae: SAE[Any]) -> int:
    """Return the width of the vectors that an SAE reconstructs."""
    return int(getattr(sae.cfg, "d_out", sae.cfg.d_in))
