"""What one decode step costs: plain transformers, the engine, and the engine with edits, interleaved in one process.

    python bench/step_cost.py [--rows 16] [--length 200] [--rounds 20] [--json FILE]

Each number is the least of all rounds; ratios are between numbers of the same run. Plain transformers gets the same
weights in its own layers, the same rows and lengths, and its own dynamic cache. Settings come from the environment,
as for the server.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerserve.core.process import limit_spinning

limit_spinning(os.environ)

import torch  # noqa: E402 it reads the environment when it is imported
from transformers import AutoModelForCausalLM, DynamicCache  # noqa: E402

from steerserve.bench.machine import least_seconds, load_average, this_machine  # noqa: E402
from steerserve.core.settings_sources import load_settings  # noqa: E402
from steerserve.engine.request import GenerationRequest, SamplingParams  # noqa: E402
from steerserve.engine.sequence import Sequence  # noqa: E402
from steerserve.model.source import fetch_model  # noqa: E402
from steerserve.runtime import build_runtime  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

    from steerserve.runtime import Runtime

EDITS = {"0": (0, False), "1": (1, False), "16": (16, False), "16 gated": (16, True)}
"""How many edits each row carries, and whether each has a gate of its own."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    runtime = build_runtime(load_settings(None, environ=os.environ, flags=[]))
    load_before = load_average()
    with torch.inference_mode():
        steps = {"transformers": plain_step(runtime, options.rows, options.length)}
        for name, (num_edits, has_gates) in EDITS.items():
            edits = edits_of(num_edits, has_gates=has_gates)
            steps[f"engine, {name} edits a row"] = engine_step(runtime, options.rows, options.length, edits)
        least = least_seconds(steps, options.rounds)
    base = least["engine, 0 edits a row"]
    result = {
        "what": "one decode step",
        "model": runtime.model_id,
        "device": str(runtime.lens.device),
        "dtype": str(runtime.lens.dtype).removeprefix("torch."),
        "rows": options.rows,
        "length": options.length,
        "rounds": options.rounds,
        "machine": asdict(this_machine()),
        "load_before": load_before,
        "least_ms": {name: round(1e3 * seconds, 2) for name, seconds in least.items()},
        "engine_over_transformers": round(base / least["transformers"], 3),
        "edits_over_none": {
            name: round(least[f"engine, {name} edits a row"] / base, 4)
            for name, (num_edits, _) in EDITS.items()
            if num_edits
        },
    }
    print(json.dumps(result, indent=2))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def plain_step(runtime: Runtime, rows: int, length: int) -> Callable[[], None]:
    """Return a decode step of transformers' own model with `length` tokens in its cache."""
    lens = runtime.lens
    files = fetch_model(runtime.settings.model.source, cache_dir=runtime.settings.cache_dir)
    model = AutoModelForCausalLM.from_pretrained(files.path, dtype=lens.dtype, attn_implementation="sdpa")
    model = model.eval().to(lens.device)
    ids = torch.arange(100, 100 + length, device=lens.device).expand(rows, length)
    cache = DynamicCache(config=model.config)
    model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)

    def step() -> None:
        logits = model(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        logits.argmax(-1).tolist()
        cache.crop(-1)

    return step


def edits_of(number: int, *, has_gates: bool) -> Callable[[int], list[dict[str, Any]]]:
    """Return what gives a row's edits: other features in each row, and other ones in the gates, which all pass."""

    def edits(row: int) -> list[dict[str, Any]]:
        gates = [
            {"when": {"feature": 89 * place + row + 7, "above": -1.0}} if has_gates else {} for place in range(number)
        ]
        return [{"feature": 97 * place + row, "scale": 1.0, "mode": "clamp", **gates[place]} for place in range(number)]

    return edits


def engine_step(
    runtime: Runtime, rows: int, length: int, edits_of_row: Callable[[int], list[dict[str, Any]]]
) -> Callable[[], None]:
    """Return a decode step of the engine's runner with the same shapes and each row's edits."""
    runner = runtime.engine.runner
    sequences = []
    for row in range(rows):
        edits = edits_of_row(row)
        sampling = SamplingParams(max_tokens=runtime.context_length, temperature=0, ignore_eos=True)
        prompt = tuple(range(100, 100 + length))
        request = GenerationRequest("bench", prompt, sampling, runtime.resolve_steering(edits or None))
        sequence = Sequence(request, runtime.tokenizer, lambda _: None)
        sequence.generated = [100]
        sequence.slot = row
        runner.open_edits(sequence)
        sequences.append(sequence)

    def step() -> None:
        runner.decode(sequences)

    return step


if __name__ == "__main__":
    main()
