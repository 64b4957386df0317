"""How much sooner arms have their first tokens for sharing a prompt: eight arms of one, against eight prompts.

    python bench/compare_sharing.py [--arms 8] [--tokens 500] [--rounds 5] [--json FILE]

Measured is the time from handing all samples to the engine until the last of them has its first token, in turns in one
process; each number is the least of all rounds. The prompts are drawn anew each time, so that nothing is known of them.
Seven of the eight arms are steered, all at generated tokens. Settings come from the environment, as for the server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from steerserve.core.process import limit_spinning

limit_spinning(os.environ)

from steerserve.bench.machine import load_average, this_machine  # noqa: E402 torch reads the environment when imported
from steerserve.core.settings_sources import load_settings  # noqa: E402
from steerserve.engine.request import GenerationRequest, SamplingParams  # noqa: E402
from steerserve.runtime import build_runtime  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Sequence

    from steerserve.engine.stream import TokenStream
    from steerserve.runtime import Runtime

_NUM_GENERATED = 32


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    load_before = load_average()
    with build_runtime(load_settings(None, environ=os.environ, flags=[])) as runtime:
        least = asyncio.run(measure(runtime, options.arms, options.tokens, options.rounds))
        result = {
            "what": "time until all arms have their first token",
            "model": runtime.model_id,
            "device": str(runtime.lens.device),
            "arms": options.arms,
            "prompt_tokens": options.tokens,
            "rounds": options.rounds,
            "machine": asdict(this_machine()),
            "load_before": load_before,
            "least_ms": {name: round(1e3 * seconds, 1) for name, seconds in least.items()},
            "separate_over_compared": round(least["separate"] / least["compared"], 2),
        }
    print(json.dumps(result, indent=2))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


async def measure(runtime: Runtime, num_arms: int, num_tokens: int, rounds: int) -> dict[str, float]:
    """Return the least seconds of both."""
    generator = random.Random(0)  # noqa: S311 no secret
    steered = [[{"feature": arm, "scale": 4.0, "positions": "generated"}] for arm in range(num_arms - 1)]
    steerings = [None, *map(runtime.resolve_steering, steered)]
    found = dict.fromkeys(("compared", "separate"), float("inf"))
    for _ in range(rounds):
        for name, num_prompts in (("compared", 1), ("separate", num_arms)):
            prompts = [draw_prompt(runtime, num_tokens, generator) for _ in range(num_prompts)]
            sampling = SamplingParams(max_tokens=_NUM_GENERATED, ignore_eos=True)
            requests = [
                GenerationRequest("bench", prompts[arm % num_prompts], sampling, steering)
                for arm, steering in enumerate(steerings)
            ]
            found[name] = min(found[name], await until_all_began(runtime, requests))
    return found


async def until_all_began(runtime: Runtime, requests: Sequence[GenerationRequest]) -> float:
    """Return the seconds until every sample has a token, and wait for their ends."""
    began = time.perf_counter()

    async def first(stream: TokenStream) -> float:
        seconds = 0.0
        async for event in stream:
            if event.num_generated_tokens == 1:
                seconds = time.perf_counter() - began
        return seconds

    return max(await asyncio.gather(*map(first, runtime.submit(requests))))


def draw_prompt(runtime: Runtime, num_tokens: int, generator: random.Random) -> tuple[int, ...]:
    """Draw a prompt that shares no beginning with another."""
    special = runtime.tokenizer.special_ids
    plain = [token_id for token_id in range(runtime.tokenizer.vocab_size) if token_id not in special]
    return tuple(generator.choices(plain, k=num_tokens))


if __name__ == "__main__":
    main()
