"""Random transcoders of every architecture that SAELens has, at every place where the MLP's input can be read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from tests.tiny import CONTEXT, D_MODEL

if TYPE_CHECKING:
    from pathlib import Path

TRANSCODERS: dict[str, tuple[str, str, float]] = {
    "tc": ("transcoder", "blocks.0.mlp.hook_in", 1.0),
    "tc-jump": ("jumprelu_transcoder", "blocks.1.ln2.hook_normalized", 1.0),
    "tc-skip": ("skip_transcoder", "blocks.1.hook_mlp_in", 0.3),
    "tc-layernorm": ("transcoder", "blocks.1.mlp.hook_in", 1.0),
}
"""Architecture, what is read, and the length of encoder columns; the last normalises its input and encodes fully."""
NUM_FEATURES = 64


def transcoder_folders(root: Path) -> dict[str, Path]:
    """Write them in SAELens' format; returns their folders."""
    return {
        name: _folder(root / name, *what, seed=20 + place) for place, (name, what) in enumerate(TRANSCODERS.items())
    }


def _folder(path: Path, architecture: str, hook_name: str, length: float, *, seed: int) -> Path:
    from sae_lens import SAE
    from sae_lens.saes.sae import SAEMetadata

    config: dict[str, Any] = {
        "architecture": architecture,
        "d_in": D_MODEL,
        "d_out": D_MODEL,
        "d_sae": NUM_FEATURES,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "layer_norm" if path.name == "tc-layernorm" else "none",
    }
    sae_config = SAE.get_sae_config_class_for_architecture(architecture).from_dict(config)
    written = hook_name.split(".")[:2]
    sae_config.metadata = SAEMetadata(
        model_name="tiny",
        hook_name=hook_name,
        hook_name_out=".".join([*written, "hook_mlp_out"]),
        context_size=CONTEXT,
        prepend_bos=False,
    )
    sae: Any = SAE.get_sae_class_for_architecture(architecture)(sae_config)
    generator = torch.Generator().manual_seed(seed)
    values = {name: torch.randn(value.shape, generator=generator) for name, value in sae.state_dict().items()}
    values["W_enc"] *= length / values["W_enc"].norm(dim=0)
    values["W_dec"] /= values["W_dec"].norm(dim=1, keepdim=True)
    scales = {"b_enc": 0.3, "b_dec": 0.2, "W_skip": 0.1}
    values = {name: scales.get(name, 1.0) * value for name, value in values.items()}
    if "threshold" in values:
        values["threshold"] = 0.1 + 0.5 * values["threshold"].abs()
    sae.load_state_dict(values)
    sae.save_model(path)
    return path
