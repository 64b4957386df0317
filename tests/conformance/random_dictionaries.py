"""Random dictionaries of every architecture that SAELens registers, written as SAELens writes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from sae_lens import SAE
from sae_lens.registry import SAE_CLASS_REGISTRY
from sae_lens.saes.sae import SAEMetadata

if TYPE_CHECKING:
    from pathlib import Path

D_SAE = 64
K = 8
EXTRA: dict[str, dict[str, Any]] = {
    "topk": {"k": K},
    "abstopk": {"k": K},
    "matching_pursuit": {"max_iterations": K},
}
TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")


def write_random(
    path: Path,
    architecture: str,
    hook_name: str,
    *,
    d_in: int,
    d_out: int | None = None,
    hook_name_out: str | None = None,
    size: float = 1.0,
    seed: int = 0,
    metadata: dict[str, Any] | None = None,
    **config: object,
) -> Path:
    """Write a dictionary; returns `path`.

    Args:
        path: A new folder.
        architecture: SAELens' name of it.
        hook_name: Where it reads.
        d_in: Width there.
        d_out: Width where a transcoder writes.
        hook_name_out: Where that is.
        size: Of a component of what it reads, so that pre-activations are of about unit variance.
        seed: Of the weights.
        metadata: More of it.
        config: More of SAELens' configuration.
    """
    described = {"architecture": architecture, "d_in": d_in, "d_sae": D_SAE, "dtype": "float32", "device": "cpu"}
    described |= EXTRA.get(architecture, {})
    if architecture in TRANSCODERS:
        described |= {"d_out": d_out or d_in, "apply_b_dec_to_input": False}
    names = {"hook_name": hook_name, "hook_name_out": hook_name_out, "model_name": "tiny"}
    sae_class, config_class = SAE_CLASS_REGISTRY[architecture]
    cfg = config_class.from_dict({**described, **config})
    cfg.metadata = SAEMetadata(**{name: value for name, value in names.items() if value}, **(metadata or {}))
    sae: SAE[Any] = sae_class(cfg)
    generator = torch.Generator().manual_seed(seed)
    sae.load_state_dict({name: _draw(name, tensor, size, generator) for name, tensor in sae.state_dict().items()})
    sae.save_model(path)
    return path


def _draw(name: str, like: torch.Tensor, size: float, generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(like.shape, generator=generator)
    if name == "W_enc":
        reading: torch.Tensor = noise / noise.norm(dim=0) / size
        return reading
    if name == "W_dec":
        # Of various lengths, which only matching pursuit, tied as it is, cannot have.
        lengths = 0.5 + 1.5 * torch.rand(len(like), 1, generator=generator)
        writing: torch.Tensor = noise / noise.norm(dim=1, keepdim=True) * lengths
        return writing
    if name == "threshold":
        return 0.1 + 0.7 * torch.rand(like.shape, generator=generator)
    return {"b_dec": 0.2, "W_skip": 0.1}.get(name, 0.3) * noise
