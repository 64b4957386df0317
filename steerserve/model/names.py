"""What a model is called, in the many ways in which hubs, files and dictionaries write it."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from steerserve.model.source import ModelFiles

_NAME_FIELDS = ("_name_or_path", "model_name")
"""Of a transformers model, and of a HookedTransformer."""
_QUANTISATION = re.compile(r"[._-](?:i?q\d\w*|bf16|fp?16|fp?32)$")


def plain_name(name: str) -> str:
    """Return the part of a model's name that is the same wherever it is written.

    That is the last component in lower case, without the endings of GGUF files: `HuggingFaceTB/SmolLM2-135M-Instruct`
    and `SmolLM2-135M-Instruct.Q4_1.gguf` are one model.
    """
    last = name.rstrip("/").rpartition("/")[2].lower().removesuffix(".gguf")
    return _QUANTISATION.sub("", last).removesuffix("-gguf")


def model_names(files: ModelFiles) -> tuple[str, ...]:
    """Return what a model is called: its id, and the name under which it was saved where its `config.json` says so."""
    try:
        config = json.loads((files.path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return (files.id,)
    fields = config if isinstance(config, dict) else {}
    name = next((fields[field] for field in _NAME_FIELDS if field in fields), None)
    return (files.id, name) if isinstance(name, str) and name else (files.id,)
