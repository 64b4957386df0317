"""Checks how exact doses are: features are pushed by one dose on texts that doses are not measured on.

    python bench/dose_check.py [--features 50] [--seed 0] [--dictionary bundled:...] [--json FILE]

Calibrates features drawn at random from those that are active in the texts below, adds dose times direction at every
token that is neither special nor a sink, and takes the 95th percentile over those tokens of KL(steered || unsteered).
The whole model runs, with a hook at the dictionary's hook point; no short cut of the calibration is used.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from steerserve.core.config import Settings
from steerserve.dictionaries.loader import DictionaryLoader
from steerserve.dose.calibrate import calibrate, prepare_texts
from steerserve.dose.prompts import prompt_ids
from steerserve.engine.background import run_pieces
from steerserve.model.lens import load_lens
from steerserve.model.names import model_names
from steerserve.model.norms import SINK_RATIO, measure_norms
from steerserve.model.source import fetch_model

if TYPE_CHECKING:
    from torch import Tensor

    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.model.lens import LensModel

MODEL = "smollm2-135m-instruct"
LOW, HIGH = 0.7, 1.4
ROWS = 4
TEXTS = Path(__file__).with_name("dose_texts.json")
"""Ten pieces of prose and ten chats, none of which doses are measured on."""


@torch.inference_mode()
def main() -> None:
    """Calibrate, measure, print one line for each feature and how many lie within the bounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dictionary", default=f"bundled:{MODEL}/res17")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    settings = Settings()
    files = fetch_model(MODEL, cache_dir=settings.cache_dir)
    lens = load_lens(files)
    loader = DictionaryLoader(
        lens=lens,
        model_names=model_names(files),
        norms=measure_norms(lens),
        allowed_dirs=settings.allowed_dictionary_dirs,
        max_bytes=settings.max_dictionary_bytes,
    )
    dictionary = loader.load("checked", options.dictionary)
    texts = json.loads(TEXTS.read_text(encoding="utf-8"))
    ids = prompt_ids(lens.tokenizer, texts["prose"], texts["chats"]).to(lens.device)
    x = lens.read(ids, [dictionary.hook_name])[dictionary.hook_name].float()
    special = torch.tensor(sorted(lens.tokenizer.special_ids), device=lens.device)
    pushed = ~torch.isin(ids, special) & (x.norm(dim=-1) <= SINK_RATIO * dictionary.median_norm)
    live = sorted(set(dictionary.encode(x[pushed]).nonzero()[:, 1].tolist()))
    features = random.Random(options.seed).sample(live, options.features)  # noqa: S311 not a secret

    began, began_cpu = time.monotonic(), time.process_time()
    built_in = run_pieces(prepare_texts(lens, dictionary))
    set_up_s, set_up_cpu_s = time.monotonic() - began, time.process_time() - began_cpu
    calibrations = run_pieces(calibrate(lens, dictionary, built_in, features))
    took_s, took_cpu_s = time.monotonic() - began - set_up_s, time.process_time() - began_cpu - set_up_cpu_s

    plain = torch.cat([lens.forward(rows, use_cache=False).float().log_softmax(-1) for rows in ids.split(ROWS)])
    nats = {}
    for feature in features:
        if feature in calibrations:
            nats[feature] = measured(lens, dictionary, ids, pushed, plain, feature, calibrations[feature].dose)
            dose, score = calibrations[feature].dose, calibrations[feature].output_score
            print(f"feature {feature}: dose {dose:.1f}, p95 KL {nats[feature]:.3f}, score {score:.4f}")
        else:
            print(f"feature {feature}: no dose")
    inside = sum(LOW <= value <= HIGH for value in nats.values())
    summary = {
        "features": len(features),
        "live": len(live),
        "tokens": int(pushed.sum()),
        "inside": inside,
        "least": min(nats.values()),
        "most": max(nats.values()),
        "median": statistics.median(nats.values()),
        "set_up_s": set_up_s,
        "set_up_cpu_s": set_up_cpu_s,
        "per_feature_s": took_s / len(features),
        "per_feature_cpu_s": took_cpu_s / len(features),
        "usual_dose": built_in.usual_dose,
    }
    print(f"{inside} of {len(features)} within {LOW} to {HIGH} nat")
    print(json.dumps(summary))
    if options.json is not None:
        results = {feature: {"dose": calibrations[feature].dose, "p95_kl": value} for feature, value in nats.items()}
        options.json.write_text(json.dumps({**summary, "results": results}, indent=1), encoding="utf-8")


def measured(
    lens: LensModel,
    dictionary: Dictionary,
    ids: Tensor,
    pushed: Tensor,
    plain: Tensor,
    feature: int,
    dose: float,
) -> float:
    """Return the 95th percentile of KL over the pushed tokens."""
    [direction] = dictionary.directions(torch.tensor([feature], device=lens.device))
    nats = []
    for rows, mask, before in zip(ids.split(ROWS), pushed.split(ROWS), plain.split(ROWS), strict=True):
        change = dose * direction * mask[..., None]
        with lens.hooked(dictionary.hook_name, lambda value, change=change: value + change):  # type: ignore[misc]
            after = lens.forward(rows, use_cache=False).float().log_softmax(-1)
        nats.append((after.exp() * (after - before)).sum(-1)[mask])
    return float(torch.cat(nats).quantile(0.95))


if __name__ == "__main__":
    main()
