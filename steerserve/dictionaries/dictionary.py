"""A dictionary: a SAELens SAE bound to one hook point of the served model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from sae_lens.saes.gated_sae import GatedSAE
from sae_lens.saes.jumprelu_sae import JumpReLUSAE
from sae_lens.saes.standard_sae import StandardSAE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jaxtyping import Float
    from sae_lens import SAE
    from torch import Tensor

_POINTWISE = (StandardSAE, JumpReLUSAE, GatedSAE)
_RESCALED = frozenset({"constant_norm_rescale", "layer_norm"})
"""Normalisations that bring each input to the length sqrt(d_in)."""
_OPEN = -torch.inf


@dataclass(frozen=True, slots=True)
class FeatureColumns:
    """What is needed to read some features without the rest: `act = max(pre * gain + bias, 0)` where the gate is open.

    `pre = x . encoder`, and the gate is open where `pre + gate_bias > threshold`.
    """

    encoder: Float[Tensor, "features d_in"]
    gain: Float[Tensor, " features"]
    bias: Float[Tensor, " features"]
    gate_bias: Float[Tensor, " features"]
    threshold: Float[Tensor, " features"]
    decoder: Float[Tensor, "features d_in"]


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Dictionary:
    """A loaded dictionary. Its contents never change; another version is another object."""

    id: str
    hook_name: str
    sae: SAE[Any]
    """In float32, on the model's device. Engine thread only: SAELens keeps scratch values on it."""
    sha256: str
    """Of the weight file."""
    contents: str
    """Names everything that decides what an edit does: the weights, the configuration and the norms."""
    zero_directions: frozenset[int]
    """Features that write nothing, so that there is no direction to remove."""
    source: str
    stored_dtype: str
    is_default: bool
    report: Mapping[str, Any] | None
    """What its training measured, where that is known."""
    median_norm: float
    """Of the vectors at the hook point, sinks and special tokens left out."""
    mean_norm: float
    warnings: tuple[str, ...] = ()
    """What speaks against using it with this model, in sentences; whoever loaded it did so all the same."""

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return int(self.sae.cfg.d_sae)

    @property
    def read_hook_name(self) -> str:
        """The hook point that `encode` reads; edits are made at `hook_name`."""
        return self.hook_name

    @property
    def d_in(self) -> int:
        """Width of the vectors that it reads."""
        return int(self.sae.cfg.d_in)

    @property
    def architecture(self) -> str:
        """SAELens' name of the architecture."""
        return str(self.sae.cfg.architecture())

    @property
    def is_pointwise(self) -> bool:
        """Whether a feature's activation needs only its own column: no competition, no normalised input."""
        return self.sae.cfg.normalize_activations == "none" and type(self.sae) in _POINTWISE

    @property
    def _is_rescaled(self) -> bool:
        return self.sae.cfg.normalize_activations in _RESCALED

    def encode(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_sae"]:
        """Return all features' activations, by SAELens' own code."""
        acts: Tensor = self.sae.encode(x)
        return acts

    def decode(self, x: Float[Tensor, "rows d_in"], acts: Float[Tensor, "rows d_sae"]) -> Float[Tensor, "rows d_in"]:
        """Return the reconstruction that these activations give where the input was `x`, by SAELens' own code.

        Dictionaries that normalise their input keep its statistics on themselves until the next decode, so they are
        put there again.
        """
        self.sae.process_sae_in(x)
        decoded: Tensor = self.sae.decode(acts)
        return decoded

    def directions(self, features: Tensor) -> Float[Tensor, "features d_in"]:
        """Return what one unit of each activation adds to the reconstruction, input normalisation aside."""
        sae: Any = self.sae
        rows: Tensor = sae.W_dec.detach()[features]
        if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
            rows = torch.nn.functional.normalize(rows, dim=-1)
        return rows

    def gains(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, " rows"]:
        """Return what `directions` are multiplied with where the input is `x`: 1, unless the input is normalised."""
        if not self._is_rescaled:
            return torch.ones_like(x[:, 0])
        feature = self.sae.W_dec.detach().norm(dim=-1).argmax()
        none = torch.zeros(len(x), self.d_sae, dtype=x.dtype, device=x.device)
        one = none.clone()
        one[:, feature] = 1.0
        [direction] = self.directions(feature[None])
        # Decoders are affine, so that any feature tells the gain of all.
        gains: Tensor = (self.decode(x, one) - self.decode(x, none)) @ direction / direction.square().sum()
        return gains

    def change_norm(self, feature: int) -> float:
        """Return the length of what one unit of a feature's activation adds, on average where that is per token."""
        norm = float(self.directions(torch.tensor([feature], device=self.sae.W_dec.device)).norm())
        return norm * (self.mean_norm / math.sqrt(self.d_in) if self._is_rescaled else 1.0)

    def columns(self, features: Sequence[int]) -> FeatureColumns:
        """Gather what reading and writing these features takes; only for a pointwise dictionary.

        Source: the `encode` of SAELens' StandardSAE, JumpReLUSAE and GatedSAE, with `b_dec` folded into the biases.
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
        if isinstance(sae, JumpReLUSAE):
            threshold = sae.threshold.detach()[index]
        return FeatureColumns(encoder, gain, bias, bias, threshold, decoder)

    def as_json(self) -> dict[str, Any]:
        """Return the dictionary object of the API."""
        metadata = self.sae.cfg.metadata
        return {
            "id": self.id,
            "object": "dictionary",
            "hook": self.hook_name,
            "architecture": self.architecture,
            "d_in": self.d_in,
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
