"""Samples made by hand, as a server would have written them."""

from __future__ import annotations

from typing import Any

RUN: dict[str, Any] = {
    "digest": "d",
    "setup": {
        "model": "tiny",
        "arms": [{"name": "baseline", "fingerprint": None}, {"name": "pushed", "fingerprint": "f1"}],
        "n": 1,
        "max_tokens": 8,
        "temperature": 0.5,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "stop": [],
    },
    "dictionaries": [
        {"id": "res0", "hook": "h", "architecture": "topk", "d_sae": 96, "source": "path:/x", "sha256": "5" * 64}
    ],
    "sessions": [{"started": 0, "command": "steerserve compare x.yaml", "versions": {"torch": "2"}, "weights": None}],
}


def record(arm: str, tokens: list[str], acts: list[float | None], **fields: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return a sample; `fields` go over it, those of `metrics` over its own."""
    metrics = {
        "surprise": 1.0,
        "kl": 0.0,
        "kl_p95": 0.0,
        "repetition": 0.0,
        "distinct_2": 1.0,
        "relevance": 0.1,
        "first_divergence": None,
        "features": {"res0": {"3": sum(act or 0 for act in acts) / max(len(acts), 1)}},
        "side_effects": [],
        "tokens": tokens,
        "features_by_token": {"res0": {"3": acts}},
        **fields.pop("metrics", {}),
    }
    return {
        "key": "k",
        "prompt": "Tell me.",
        "seed": 0,
        "arm": arm,
        "control_of": None,
        "index": 0,
        "text": "".join(tokens),
        "finish_reason": "stop",
        "usage": {"completion_tokens": len(tokens)},
        "metrics": metrics,
        **fields,
    }


def receipt(label: str = "bridges", **fields: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return what a response says of one edit of feature 3."""
    edit = {
        "dictionary": "res0",
        "sha256": "5" * 64,
        "hook": "h",
        "feature": 3,
        "label": label,
        "mode": "add",
        "scale": 2.0,
        "unit": "dose",
        "raw_scale": 30.0,
        "positions": "generated",
        "mean_change": 0.1,
        **fields,
    }
    return {"fingerprint": "f1", "strength": 1.0, "edits": [edit]}
