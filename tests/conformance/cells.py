"""What is compared: each architecture at each hook point, and with each way of treating its input."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.conformance.random_dictionaries import TRANSCODERS

MODES = ("add", "clamp", "multiply", "ablate", "floor", "ceiling", "remove")
POSITIONS = ("all", "prompt", "generated")
NUM_EDITS = len(MODES) * len(POSITIONS)
"""Of one batch, each in a request of its own."""
SAES = ("standard", "gated", "jumprelu", "topk", "abstopk", "matching_pursuit")
REFUSED = ("temporal",)

HOOK_POINTS = {
    "resid_pre": "blocks.1.hook_resid_pre",
    "attn.hook_z": "blocks.0.attn.hook_z",
    "attn_out": "blocks.1.hook_attn_out",
    "resid_mid": "blocks.0.hook_resid_mid",
    "mlp_out": "blocks.0.hook_mlp_out",
    "resid_post": "blocks.1.hook_resid_post",
}
INPUTS: dict[str, dict[str, Any]] = {
    "`constant_norm_rescale`": {"normalize_activations": "constant_norm_rescale"},
    "`layer_norm`": {"normalize_activations": "layer_norm"},
    "`expected_average_only_in`": {"normalize_activations": "expected_average_only_in"},
    "`covariance_whitening`": {"normalize_activations": "covariance_whitening"},
    "`apply_b_dec_to_input` off": {"apply_b_dec_to_input": False},
    "`rescale_acts_by_decoder_norm` on": {"rescale_acts_by_decoder_norm": True},
}
INPUT_HOOK = "blocks.0.hook_resid_post"
RESCALED = ("topk", "abstopk")
WAYS = {
    "`ln2.hook_normalized`": ("blocks.0.ln2.hook_normalized", "blocks.0.hook_mlp_out"),
    "`mlp.hook_in`": ("blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"),
    "`hook_mlp_in`": ("blocks.0.hook_mlp_in", "blocks.0.hook_mlp_out"),
    "`hook_resid_mid`": ("blocks.0.hook_resid_mid", "blocks.0.hook_mlp_out"),
    "two blocks": ("blocks.0.hook_resid_pre", "blocks.1.hook_resid_post"),
    "`layer_norm`": ("blocks.0.mlp.hook_in", "blocks.0.hook_mlp_out"),
    "`constant_norm_rescale`": ("blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"),
}


@dataclass(frozen=True)
class Cell:
    """One architecture in one column of a table."""

    table: str
    architecture: str
    column: str
    hook_name: str
    hook_name_out: str | None = None
    config: dict[str, Any] = field(default_factory=dict, compare=False)

    def __str__(self) -> str:
        return f"{self.architecture}-{self.column.replace('`', '')}"


def cells() -> list[Cell]:
    """Return all of them."""
    found = []
    for architecture in SAES:
        for column, hook_name in HOOK_POINTS.items():
            config = {"reshape_activations": "hook_z"} if hook_name.endswith("hook_z") else {}
            found.append(Cell("hook points", architecture, column, hook_name, config=config))
        for column, config in INPUTS.items():
            if "rescale_acts_by_decoder_norm" not in config or architecture in RESCALED:
                found.append(Cell("inputs", architecture, column, INPUT_HOOK, config=config))
    for architecture in TRANSCODERS:
        for column, (hook_name, hook_name_out) in WAYS.items():
            kind = column.strip("`")
            config = {"normalize_activations": kind} if kind in {"layer_norm", "constant_norm_rescale"} else {}
            found.append(Cell("transcoders", architecture, column, hook_name, hook_name_out, config))
    return found


COLUMNS = {"hook points": [*HOOK_POINTS], "inputs": [*INPUTS], "transcoders": [*WAYS]}
ROWS = {"hook points": [*SAES, *REFUSED], "inputs": [*SAES, *REFUSED], "transcoders": [*TRANSCODERS]}


def table(name: str, entries: dict[Cell, str]) -> str:
    """Write one of the three tables in Markdown: an entry where something was compared."""
    columns = COLUMNS[name]
    lines = [f"| | {' | '.join(columns)} |", f"| --- |{' --- |' * len(columns)}"]
    for architecture in ROWS[name]:
        mine = {
            cell.column: text
            for cell, text in entries.items()
            if (cell.table, cell.architecture) == (name, architecture)
        }
        missing = "refused" if architecture in REFUSED else "-"
        lines.append(f"| `{architecture}` | {' | '.join(mine.get(column, missing) for column in columns)} |")
    return "\n".join(lines)
