"""Names of models, as hubs, files and dictionaries write them, and names of hook points. No torch."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from steerserve.model.source import ModelFiles

RESID_PRE, RESID_MID, RESID_POST = "hook_resid_pre", "hook_resid_mid", "hook_resid_post"
HOOK_Z, ATTN_OUT, MLP_OUT = "attn.hook_z", "hook_attn_out", "hook_mlp_out"
STREAM_INTO_MLP, LN2_NORMALIZED, MLP_IN = "hook_mlp_in", "ln2.hook_normalized", "mlp.hook_in"
"""Before the MLP: the stream before its norm, the stream normalised but not yet weighted, and the MLP's input."""
KINDS = (RESID_PRE, HOOK_Z, ATTN_OUT, RESID_MID, MLP_OUT, RESID_POST)
"""Kinds of hook points that can be read and edited, in the order of a forward pass."""
READ_KINDS = (STREAM_INTO_MLP, LN2_NORMALIZED, MLP_IN)
"""Kinds that can only be read, by transcoders. An edit there would change the MLP but not the stream."""
ALL_KINDS = (RESID_PRE, HOOK_Z, ATTN_OUT, RESID_MID, *READ_KINDS, MLP_OUT, RESID_POST)
"""All kinds, in the order of a forward pass."""
_NAME_FIELDS = ("_name_or_path", "model_name")
"""Fields with the name, of a transformers model and of a HookedTransformer."""
_QUANTISATION = re.compile(r"[._-](?:i?q\d\w*|bf16|fp?16|fp?32)$")


def plain_name(name: str) -> str:
    """Return the part of a model's name that is the same on hubs, in files and in dictionaries.

    It is the last component in lower case, without the endings of GGUF files: `HuggingFaceTB/SmolLM2-135M-Instruct`
    and `SmolLM2-135M-Instruct.Q4_1.gguf` are the same model.
    """
    last = name.rstrip("/").rpartition("/")[2].lower().removesuffix(".gguf")
    return _QUANTISATION.sub("", last).removesuffix("-gguf")


def model_names(files: ModelFiles) -> tuple[str, ...]:
    """Return the names of a model: its id, and the name in its `config.json`, if it has one."""
    try:
        config = json.loads((files.path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return (files.id,)
    fields = config if isinstance(config, dict) else {}
    name = next((fields[field] for field in _NAME_FIELDS if field in fields), None)
    return (files.id, name) if isinstance(name, str) and name else (files.id,)


def describe_hook_names(hook_names: Iterable[str]) -> str:
    """Describe hook points briefly, in however many blocks they are."""
    blocks: dict[int, None] = {}
    kinds: set[str] = set()
    for hook_name in hook_names:
        _, block, kind = hook_name.split(".", 2)
        blocks[int(block)] = None
        kinds.add(kind)
    first, last = min(blocks), max(blocks)
    offered = [kind for kind in ALL_KINDS if kind in kinds]
    return f"{', '.join(offered[:-1])} and {offered[-1]} of blocks.{first} to blocks.{last}"
