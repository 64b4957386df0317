"""From two sets of texts to a feature that writes, and what it does to answers that a random direction does not."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

import pytest
import torch

from steerserve.contrast.contrast import contrast
from steerserve.contrast.examples import FORMAL_SLANGY, FRENCH_ENGLISH
from steerserve.contrast.text_sets import read_text_sets
from tests.engine.harness import ask

if TYPE_CHECKING:
    from collections.abc import Callable

    from steerserve.contrast.examples import ExampleSets
    from steerserve.runtime import Runtime

pytestmark = pytest.mark.real_model

PROMPTS = (
    "Tell me about your weekend.",
    "What do you think about music?",
    "How was the food at the party?",
    "What should I do tomorrow?",
)
NUM_SAMPLES = 2
ROMANCE = """le la les l de des du et est un une que qui dans pour avec sur je tu il elle nous vous ils ne pas au ce se
en mon ma mes son sa ses el los las del y es con para por su no mi"""
CHATTY = "i you it it's i'm i'll i've you're hey yeah so just like really gonna wanna ok okay"


def romance_share(text: str) -> float:
    """Share of short words of French and its neighbours: this model hardly tells these apart."""
    words, romance = re.findall(r"[^\W\d_]+", text.lower()), set(ROMANCE.split())
    return sum(word in romance for word in words) / max(len(words), 1)


def chatty_share(text: str) -> float:
    words, chatty = re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", text.lower()), set(CHATTY.split())
    return sum(word in chatty for word in words) / max(len(words), 1)


@pytest.mark.parametrize(
    ("sets", "toward_positive", "statistic"),
    [(FRENCH_ENGLISH, 1.0, romance_share), (FORMAL_SLANGY, -1.0, chatty_share)],
    ids=["french-english", "formal-slangy"],
)
def test_the_first_feature_that_writes_moves_generations_and_a_random_direction_does_not(
    default_runtime: Runtime, sets: ExampleSets, toward_positive: float, statistic: Callable[[str], float]
) -> None:
    [dictionary] = default_runtime.dictionaries()
    store = default_runtime.stores.find(dictionary)
    assert store is not None, "the bundled dictionary comes with its store"
    calibrations = store.calibrations()
    texts = read_text_sets(default_runtime.tokenizer, sets.positive, sets.negative, max_context=512)
    engine = default_runtime.engine
    ranked = asyncio.run(contrast(engine, dictionary, texts, 20, default_runtime.contrast_queue))
    first = next(candidate for candidate in ranked if calibrations[candidate.feature].writes)
    assert first.p_value <= 0.05
    # What fires on slang is found from either side; pushed, it leads to the side that it fires on.
    assert (first.auc - 0.5) * toward_positive > 0
    dose = calibrations[first.feature].dose
    assert dose is not None
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(dictionary.d_in, generator=generator)
    size = dose * dictionary.directions(torch.tensor([first.feature])).norm()
    control = {"hook": dictionary.hook_name, "values": (noise * size / noise.norm()).tolist()}

    def mean(steering: Any) -> float:  # noqa: ANN401 as a client writes it
        requests = [
            ask(
                default_runtime,
                default_runtime.tokenizer.render_chat([{"role": "user", "content": prompt}]),
                steering,
                max_tokens=40,
                temperature=1.0,
                seed=sample,
            )
            for prompt in PROMPTS
            for sample in range(NUM_SAMPLES)
        ]
        answers = ["".join(event.text for event in events) for events in engine.generate(requests)]
        return sum(map(statistic, answers)) / len(answers)

    plain = mean(None)
    steered = mean([{"feature": first.feature, "scale": 1.0, "unit": "dose"}])
    random = mean([{"vector": control, "scale": 1.0}])
    means = f"plain {plain:.3f}, steered {steered:.3f}, random direction {random:.3f}"
    assert steered - plain > 3 * abs(random - plain), means
    assert steered > 2 * plain, means
