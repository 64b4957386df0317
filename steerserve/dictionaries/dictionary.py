"""A dictionary: a SAELens SAE bound to hook points of the served model.

A transcoder reads one hook point and is edited at another, the one whose values it reconstructs; all others do both at
one.
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
    decoder: Float[Tensor, "features d_out"]


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Dictionary:
    """A loaded dictionary. Its contents never change; another version is another object."""

    id: str
    hook_name: str
    """Where edits are made."""
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
    """Of the vectors where edits are made, sinks and special tokens left out."""
    mean_norm: float
    hook_in: str | None = None
    """Where a transcoder reads; None for all others, which read where they are edited."""
    warnings: tuple[str, ...] = ()
    """What speaks against using it with this model, in sentences; whoever loaded it did so all the same."""

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return int(self.sae.cfg.d_sae)

    @property
    def read_hook_name(self) -> str:
        """The hook point that `encode` reads; edits are made at `hook_name`."""
        return self.hook_in or self.hook_name

    @property
    def hook_names(self) -> tuple[str, ...]:
        """The hook points whose values reading it takes: what `encode` reads, and that by which sinks are known."""
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
        """Whether what it writes is scaled as the input was; SAELens' transcoders write another hook point unscaled."""
        return self.sae.cfg.normalize_activations in _RESCALED and not isinstance(self.sae, Transcoder)

    def encode(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_sae"]:
        """Return all features' activations, by SAELens' own code."""
        acts: Tensor = self.sae.encode(x)
        return acts

    def decode(self, x: Float[Tensor, "rows d_in"], acts: Float[Tensor, "rows d_sae"]) -> Float[Tensor, "rows d_out"]:
        """Return the reconstruction that these activations give where the input was `x`, by SAELens' own code.

        Dictionaries that normalise their input keep its statistics on themselves until the next decode, so they are
        put there again. What a transcoder's skip connection carries past the features is part of its reconstruction.
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

        Source: the `encode` of SAELens' StandardSAE, JumpReLUSAE, GatedSAE and transcoders, with `b_dec` folded into
        the biases; transcoders, whose `b_dec` is of the other width, never subtract it.
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
    """Return the width of the vectors that a dictionary reconstructs: that of those it reads, unless it transcodes."""
    return int(getattr(sae.cfg, "d_out", sae.cfg.d_in))
