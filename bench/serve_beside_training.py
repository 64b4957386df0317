"""What a training job takes from serving: the same streams without a job, during each stage of one, and after it.

    steerserve serve --port 8123
    python bench/serve_beside_training.py --url http://127.0.0.1:8123 --corpus path:corpus [--json FILE]

The server must run on this machine, with the corpus below its `corpus_dirs`. The job is cancelled in the end.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import json
import secrets
from dataclasses import asdict
from pathlib import Path
from typing import Any

from steerserve.bench.machine import load_average, this_machine
from steerserve.bench.measure import LoadTest
from steerserve.bench.target import inspect
from steerserve.bench.workload import Workload
from steerserve.client.server_client import AsyncServerClient

STAGES = ("Reading text", "Training")
POLL_S = 0.5


async def measure(url: str, corpus: str, concurrency: int, tokens: int, repeats: int) -> dict[str, Any]:
    """Return throughput alone and beside each stage of a job, and their ratios."""
    load_before = load_average()
    async with AsyncServerClient(url, None) as client:
        target = await inspect(client)
        workload = Workload(
            model=target.model, max_tokens=tokens, dictionary=target.dictionary, seed=secrets.randbelow(1 << 32)
        )
        bench = LoadTest(client, workload, repeats=repeats, note=print)
        await bench.warm_up(concurrency, [1])
        found = {"alone": asdict((await bench.sweep([concurrency], 1))[0])}
        started = await client.post(
            "/admin/train",
            {"id": f"bench-{secrets.token_hex(3)}", "corpus": corpus, "tokens": 25_000, "epochs": 40},
        )
        path = f"/admin/jobs/{started['id']}"
        try:
            for stage in STAGES:
                await reach(client, path, stage)
                found[stage] = asdict((await bench.sweep([concurrency], 1))[0])
        finally:
            await client.request("DELETE", path)
            await reach(client, path, None)
        found["alone again"] = asdict((await bench.sweep([concurrency], 1))[0])
    alone = found["alone"]["tokens_per_s"]
    ratios = {name: point["tokens_per_s"] / alone for name, point in found.items()}
    return {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "machine": asdict(this_machine()),
        "load_before": load_before,
        "concurrency": concurrency,
        "tokens": tokens,
        "measured": found,
        "throughput_over_alone": ratios,
    }


async def reach(client: AsyncServerClient, path: str, stage: str | None) -> None:
    """Wait until a job is in a stage, or has ended for None."""
    while True:
        job = await client.get(path)
        is_over = job["state"] in {"done", "failed", "cancelled"}
        if is_over and stage is not None:
            message = f"the job ended before the stage {stage!r}: {job['state']}, {job['error']}"
            raise RuntimeError(message)
        if is_over or (stage is not None and job["progress"].get("stage") == stage):
            return
        await asyncio.sleep(POLL_S)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--corpus", default="path:corpus")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    report = asyncio.run(measure(given.url, given.corpus, given.concurrency, given.tokens, given.repeats))
    for name, point in report["measured"].items():
        ratio = report["throughput_over_alone"][name]
        print(f"{name:14} {point['tokens_per_s']:7.1f} tokens/s  {ratio:5.2f} of alone")
    if given.json is not None:
        given.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
