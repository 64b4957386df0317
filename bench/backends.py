"""What one decode step costs on each backend, and in HookedTransformer by itself, interleaved in one process.

    python bench/backends.py [--rows 8] [--length 200] [--rounds 20] [--json FILE]

Each number is the least of all rounds; ratios are between numbers of the same run. All have the same rows, lengths and
model. HookedTransformer by itself is TransformerLens' own forward with its own cache, which is frozen so that each
round computes the same token. Settings come from the environment, as for the server.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from steerserve.core.process import limit_spinning

limit_spinning(os.environ)

import torch  # noqa: E402 it reads the environment when it is imported
from transformer_lens import TransformerLensKeyValueCache  # noqa: E402

from steerserve.bench.machine import least_seconds, load_average, this_machine  # noqa: E402
from steerserve.core.config import Backend, ModelSettings, Settings  # noqa: E402
from steerserve.core.settings_sources import load_settings  # noqa: E402
from steerserve.engine.request import GenerationRequest, SamplingParams  # noqa: E402
from steerserve.engine.runner import Runner  # noqa: E402
from steerserve.engine.sequence import Sequence  # noqa: E402
from steerserve.model.hooked_files import load_hooked  # noqa: E402
from steerserve.model.lens import load_lens  # noqa: E402
from steerserve.model.source import ModelFiles, fetch_model  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

    from steerserve.model.lens import LensModel


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    settings = load_settings(None, environ=os.environ, flags=[])
    files = fetch_model(settings.model.source, cache_dir=settings.cache_dir)
    load_before = load_average()
    with torch.inference_mode():
        lenses = {backend: build(files, settings.model, backend) for backend in get_args(Backend)}
        steps = {name: engine_step(lens, settings, options.rows, options.length) for name, lens in lenses.items()}
        first = next(iter(lenses.values()))
        steps["HookedTransformer by itself"] = plain_step(files, first, options.rows, options.length)
        least = least_seconds(steps, options.rounds)
    result = {
        "what": "one decode step",
        "model": files.id,
        "device": str(first.device),
        "dtype": str(first.dtype).removeprefix("torch."),
        "rows": options.rows,
        "length": options.length,
        "rounds": options.rounds,
        "machine": asdict(this_machine()),
        "load_before": load_before,
        "least_ms": {name: round(1e3 * seconds, 2) for name, seconds in least.items()},
        "over_bridge": {name: round(seconds / least["bridge"], 3) for name, seconds in least.items()},
    }
    print(json.dumps(result, indent=2))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def build(files: ModelFiles, model: ModelSettings, backend: Backend) -> LensModel:
    """Load the model."""
    return load_lens(files, device=model.device, dtype=model.dtype, backend=backend)


def engine_step(lens: LensModel, settings: Settings, rows: int, length: int) -> Callable[[], None]:
    """Return a decode step of the engine's runner, over slots whose prompts are computed."""
    runner = Runner(lens, rows, settings.engine.context, {})
    sequences = []
    for row in range(rows):
        sampling = SamplingParams(max_tokens=settings.engine.context, temperature=0, ignore_eos=True)
        request = GenerationRequest("bench", tuple(range(100, 100 + length)), sampling)
        sequence = Sequence(request, lens.tokenizer, lambda _: None)
        sequence.slot = row
        runner.prefill(sequence, 0, length)
        sequence.generated = [100]
        sequences.append(sequence)

    def step() -> None:
        runner.decode(sequences)

    return step


def plain_step(files: ModelFiles, like: LensModel, rows: int, length: int) -> Callable[[], None]:
    """Return a decode step of TransformerLens' own code, with `length` tokens in its cache."""
    model, _ = load_hooked(files, like.dtype, process_weights=True)
    model.cfg.device = str(like.device)
    torch.nn.Module.to(model, like.device)
    ids = torch.arange(100, 100 + length, device=like.device).expand(rows, length)
    cache = TransformerLensKeyValueCache.init_cache(model.cfg, like.device, rows)
    model(ids, past_kv_cache=cache, attention_mask=torch.ones_like(ids))
    cache.freeze()

    def step() -> None:
        newest = ids[:, -1:]
        model(newest, past_kv_cache=cache, attention_mask=torch.ones_like(newest)).argmax(-1).tolist()

    return step


if __name__ == "__main__":
    main()
