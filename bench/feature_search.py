"""Measure how fast a feature store is searched and read, on invented features: `python bench/feature_search.py`.

The text is drawn word by word from Zipf's law, so that there are common and rare words as in a language; every feature
has everything that an interpretation can record, 45 snippets included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from steerserve.bench.machine import load_average, this_machine
from steerserve.store.placement import replacing
from steerserve.store.records import (
    NUM_INTERVALS,
    NUM_TOP_SNIPPETS,
    SNIPPET_TOKENS,
    SNIPPETS_PER_INTERVAL,
    Activity,
    Calibration,
    FeatureRecord,
    Label,
    TextSnippet,
)
from steerserve.store.store import FeatureStore
from steerserve.store.stored import StoreMeta

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_VOCABULARY = 30_000
_TOKENS = 1_000_000
_LETTERS = "etaoinshrdlucmfwypvbgkjqxz"


def words(generator: np.random.Generator) -> list[bytes]:
    """Invent a vocabulary in which frequent words are short."""
    lengths = 2 + np.log2(1 + np.arange(_VOCABULARY)).astype(int) // 2
    return [b" " + "".join(generator.choice(list(_LETTERS), length)).encode() for length in lengths]


def features(num_features: int, generator: np.random.Generator, names: list[bytes]) -> Iterator[FeatureRecord]:
    """Invent features; each prefers a few words at its peaks, as real ones do."""
    text = generator.zipf(1.2, 4 * _TOKENS) - 1
    text = text[text < _VOCABULARY][:_TOKENS]
    num_snippets = NUM_TOP_SNIPPETS + NUM_INTERVALS * SNIPPETS_PER_INTERVAL
    for number in range(num_features):
        preferred = generator.integers(0, _VOCABULARY, 3)
        starts = generator.integers(0, len(text) - SNIPPET_TOKENS, num_snippets)
        snippets = []
        for index, start in enumerate(starts):
            ids, acts = text[start : start + SNIPPET_TOKENS].copy(), np.zeros(SNIPPET_TOKENS)
            ids[20] = preferred[index % 3]
            acts[generator.integers(0, SNIPPET_TOKENS, 4)] = generator.uniform(0, 20, 4)
            acts[20] = 20.0
            interval = None if index < NUM_TOP_SNIPPETS else index % NUM_INTERVALS
            snippets.append(TextSnippet(tuple(ids.tolist()), tuple(acts.tolist()), 20, interval))
        scored = [
            tuple(
                zip(generator.integers(0, _VOCABULARY, 20).tolist(), generator.normal(0, 3, 20).tolist(), strict=True)
            )
            for _ in range(2)
        ]
        yield FeatureRecord(
            feature=number,
            activity=Activity(
                _TOKENS,
                int(generator.integers(1, 5000)),
                20.0,
                float(generator.uniform(1, 5)),
                (1.0, 2.0, 5.0, 9.0, 15.0),
                tuple(generator.integers(0, 99, 64).tolist()),
            ),
            snippets=tuple(snippets),
            peak_tokens=tuple((token, 15) for token in preferred.tolist()),
            promoted=scored[0],
            suppressed=scored[1],
            neighbours=tuple((int(other), 0.5) for other in generator.integers(0, num_features, 8)),
            labels=(Label(f"fires on{names[preferred[0]].decode()}", "peak", 0.8),),
        )


def measure(call: Callable[[], object], repeats: int) -> dict[str, float]:
    """Return median, 95th percentile and largest of some calls, in milliseconds."""
    call()
    times_ms = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times_ms.append(1e3 * (time.perf_counter() - start))
    return {
        "p50_ms": round(statistics.median(times_ms), 2),
        "p95_ms": round(float(np.quantile(times_ms, 0.95)), 2),
        "max_ms": round(max(times_ms), 2),
    }


def main() -> None:
    """Make a store, and print how long it takes to search and read it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--features", type=int, default=16_384)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--store", type=Path, help="keep the store in this file, and use the file if it exists")
    arguments = parser.parse_args()
    generator = np.random.default_rng(0)
    names = words(generator)
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.store or Path(folder) / "features.sqlite3"
        figures: dict[str, object] = {
            "machine": asdict(this_machine()),
            "load": load_average(),
            "features": arguments.features,
        }
        if not path.exists():
            start = time.perf_counter()
            with replacing(path, StoreMeta("0" * 64, arguments.features, "made up", _TOKENS)) as fresh:
                fresh.write_features(features(arguments.features, generator, names), names.__getitem__)
                scores = generator.random(arguments.features) ** 8
                fresh.write_calibrations(
                    {feature: Calibration(40.0, float(score)) for feature, score in enumerate(scores)}
                )
            figures["write_s"] = round(time.perf_counter() - start, 1)
        figures["bytes_per_feature"] = path.stat().st_size // arguments.features
        store = FeatureStore.open(path)
        common, usual, rare = (names[index].decode().strip() for index in (0, 300, 20_000))
        queries = {
            "list": "",
            "common word": common,
            "usual word": usual,
            "rare word": rare,
            "three common words": " ".join(name.decode().strip() for name in names[:3]),
            "two usual words": f"{usual} {names[200].decode().strip()}",
            "beginning of a word": rare[:3],
            "label": "fires on",
            "nothing": "zzzzzzzzzz",
        }
        figures["search"] = {
            name: measure(lambda query=query: store.search(query), arguments.repeats)  # type: ignore[misc]
            for name, query in queries.items()
        }
        numbers = iter(generator.integers(0, arguments.features, 10 * arguments.repeats).tolist())
        figures["view"] = measure(lambda: store.feature(next(numbers)), arguments.repeats)
        figures["labels"] = measure(lambda: store.labels(range(100)), arguments.repeats)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
