"""Measures an interpretation: the model's forward pass, the dictionary's encoder, counting, and the rest.

    python bench/interpret_speed.py --corpus text/ [--tokens 200000] [--dictionary SOURCE] [--json FILE]

The run is that of `steerserve interpret --no-calibrate` in one process, with a clock around each part. All but the
forward pass should take less than a fifth of the time.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerserve.core.process import limit_spinning

limit_spinning(os.environ)

import torch  # noqa: E402 it reads the environment when it is imported

from steerserve.bench.machine import load_average, this_machine  # noqa: E402
from steerserve.core.config import DEFAULT_DICTIONARY_SOURCE, DEFAULT_MODEL  # noqa: E402
from steerserve.core.settings_sources import load_settings  # noqa: E402
from steerserve.dictionaries.dictionary import Dictionary  # noqa: E402
from steerserve.interpret import interpret as run  # noqa: E402
from steerserve.interpret.options import InterpretedSource, InterpretOptions  # noqa: E402
from steerserve.interpret.tally import Tally  # noqa: E402
from steerserve.model.lens import LensModel  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PARTS = {
    (LensModel, "read"): "forward",
    (Dictionary, "encode"): "encode",
    (Tally, "add"): "count",
    (run, "direction_facts"): "directions",
    (run, "open_model"): "load",
    (run, "load_corpus"): "load",
    (run, "measure_norms"): "load",
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", action="append", required=True)
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--dictionary", default=DEFAULT_DICTIONARY_SOURCE)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    settings = load_settings(environ=os.environ)
    clock: defaultdict[str, float] = defaultdict(float)
    for (owner, name), part in PARTS.items():
        setattr(owner, name, timed(getattr(owner, name), part, clock))
    load_before = load_average()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        options = InterpretOptions(
            dictionaries=(InterpretedSource("dictionary", arguments.dictionary),),
            corpus=tuple(arguments.corpus),
            dictionary_dirs=(Path(folder),),
            allowed_dirs=settings.allowed_dictionary_dirs,
            max_dictionary_bytes=settings.max_dictionary_bytes,
            model=arguments.model,
            tokens=arguments.tokens,
            calibrate=False,
        )
        [found] = run.interpret(options, Silent())
        store_bytes = found.store.stat().st_size
    total = time.perf_counter() - started
    parts = {**{part: clock[part] for part in dict.fromkeys(PARTS.values())}, "rest": total - sum(clock.values())}
    result = {
        "what": "interpreting without calibration",
        "model": arguments.model,
        "dictionary": arguments.dictionary,
        "num_features": found.num_features,
        "num_live": found.num_live,
        "num_labelled": found.num_labelled,
        "tokens": found.num_tokens,
        "store_bytes_per_feature": round(store_bytes / found.num_features),
        "machine": asdict(this_machine()),
        "threads": torch.get_num_threads(),
        "load_before": load_before,
        "total_s": round(total, 1),
        "parts_s": {part: round(seconds, 1) for part, seconds in parts.items()},
        "share_beside_forward": round(1 - (parts["forward"] + parts["load"]) / total, 3),
    }
    print(json.dumps(result, indent=2))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def timed(function: Any, part: str, clock: defaultdict[str, float]) -> Any:  # noqa: ANN401 any function
    """Return the function with its seconds added to the clock; no part is called within another one."""

    def measured(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 as the function
        started = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            clock[part] += time.perf_counter() - started

    return measured


class Silent:
    """An observer that shows nothing and stops nothing."""

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Silent]:
        """Follow a stage."""
        del title, total
        yield self

    def update(self, done: int, facts: Mapping[str, Any] | None = None) -> None:
        """Pass over what is told."""

    def should_stop(self) -> bool:
        """Never stop."""
        return False


if __name__ == "__main__":
    main()
