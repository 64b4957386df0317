"""What watching costs: one decode step of the engine without, with the top 8 and with more, interleaved in one process.

    python bench/watch_cost.py [--rows 16] [--length 200] [--rounds 20] [--json FILE]

Each number is the least of all rounds; ratios are between numbers of the same run. Every row watches the default
dictionary. A step includes choosing tokens, and bringing what was read to the host; writing JSON, which happens on
another thread, is measured by itself. Settings come from the environment, as for the server.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from steerserve.core.process import limit_spinning

limit_spinning(os.environ)

import torch  # noqa: E402 it reads the environment when it is imported

from steerserve.bench.machine import least_seconds, load_average, this_machine  # noqa: E402
from steerserve.core.settings_sources import load_settings  # noqa: E402
from steerserve.engine.request import GenerationRequest, SamplingParams, TokenReadings, Watch  # noqa: E402
from steerserve.engine.sequence import Sequence  # noqa: E402
from steerserve.requests.watching import FeatureWriter  # noqa: E402
from steerserve.runtime import build_runtime  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

    from steerserve.runtime import Runtime

KINDS = {"none": None, "top 8": (8, 0), "top 64 and 64 watched": (64, 64), "top 8, one row": (8, 0)}
"""How many of the strongest features, and how many that are watched."""
ONE_ROW = "top 8, one row"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    runtime = build_runtime(load_settings(None, environ=os.environ, flags=[]))
    [dictionary, *_] = runtime.dictionaries()
    load_before = load_average()
    with torch.inference_mode():
        steps = {
            name: engine_step(runtime, options.rows, options.length, watch_of(runtime, kind), one_row=name == ONE_ROW)
            for name, kind in KINDS.items()
        }
        least = least_seconds(steps, options.rounds)
        least |= least_seconds({"top 8 as JSON": writing(runtime, options.rows, options.length)}, options.rounds)
    result = {
        "what": "one decode step",
        "model": runtime.model_id,
        "dictionary": {"id": dictionary.id, "d_in": dictionary.d_in, "d_sae": dictionary.d_sae},
        "device": str(runtime.lens.device),
        "dtype": str(runtime.lens.dtype).removeprefix("torch."),
        "rows": options.rows,
        "length": options.length,
        "rounds": options.rounds,
        "machine": asdict(this_machine()),
        "load_before": load_before,
        "load_after": load_average(),
        "least_ms": {name: round(1e3 * seconds, 2) for name, seconds in least.items()},
        "watching_over_none": {
            name: round(least[name] / least["none"], 4) for name, kind in KINDS.items() if kind is not None
        },
    }
    print(json.dumps(result, indent=2))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def watch_of(runtime: Runtime, kind: tuple[int, int] | None) -> Watch | None:
    """Return what a row watches."""
    [dictionary, *_] = runtime.dictionaries()
    return None if kind is None else Watch((dictionary,), kind[0], tuple(range(kind[1])))


def batch(runtime: Runtime, rows: int, length: int, watch: Watch | None, *, one_row: bool = False) -> list[Sequence]:
    """Return decoding sequences of which all, or only the first, watch."""
    sequences = []
    for row in range(rows):
        sampling = SamplingParams(max_tokens=runtime.context_length, temperature=0, ignore_eos=True)
        prompt = tuple(range(100 + row, 100 + row + length))
        mine = None if one_row and row else watch
        sequence = Sequence(GenerationRequest("bench", prompt, sampling, watch=mine), runtime.tokenizer, lambda _: None)
        sequence.generated = [100 + row]
        sequence.slot = row
        sequences.append(sequence)
    return sequences


def engine_step(runtime: Runtime, rows: int, length: int, watch: Watch | None, *, one_row: bool) -> Callable[[], None]:
    """Return a decode step of the engine's runner."""
    runner, sequences = runtime.engine.runner, batch(runtime, rows, length, watch, one_row=one_row)
    for sequence in sequences:  # keys and values as a prompt leaves them, so that activations are like a text's
        runner.prefill(sequence, 0, length)

    def step() -> None:
        runner.decode(sequences)

    return step


def writing(runtime: Runtime, rows: int, length: int) -> Callable[[], None]:
    """Return what the event loop does with a step's readings."""
    watch = watch_of(runtime, (8, 0))
    sequences = batch(runtime, rows, length, watch)
    runtime.engine.runner.decode(sequences)
    writer = FeatureWriter(runtime, watch)

    def write() -> None:
        for sequence in sequences:
            [entry] = writer.entries([TokenReadings(100, length, sequence.readings)])
            entry.model_dump_json()

    return write


if __name__ == "__main__":
    main()
