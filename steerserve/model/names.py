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
"""On the MLP's way in: the stream before its norm, after the norm's division and before its weights, what it takes."""
KINDS = (RESID_PRE, HOOK_Z, ATTN_OUT, RESID_MID, MLP_OUT, RESID_POST)
"""What can be read and edited, in the order in which a forward pass reaches them."""
READ_KINDS = (STREAM_INTO_MLP, LN2_NORMALIZED, MLP_IN)
"""What can only be read, which transcoders do: an edit there is one of the MLP alone, and no client may ask for it."""
ALL_KINDS = (RESID_PRE, HOOK_Z, ATTN_OUT, RESID_MID, *READ_KINDS, MLP_OUT, RESID_POST)
"""In the order in which a forward pass reaches them."""
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


def describe_hook_names(hook_names: Iterable[str]) -> str:
    """Say in a few words which hook points these are, however many blocks they are in."""
    blocks: dict[int, None] = {}
    kinds: set[str] = set()
    for hook_name in hook_names:
        _, block, kind = hook_name.split(".", 2)
        blocks[int(block)] = None
        kinds.add(kind)
    first, last = min(blocks), max(blocks)
    offered = [kind for kind in ALL_KINDS if kind in kinds]
    return f"{', '.join(offered[:-1])} and {offered[-1]} of blocks.{first} to blocks.{last}"
