"""What a generated text does to the model that reads it again, with its edits and without. Needs torch."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from steerserve.engine.readings import Span, encode_counted
from steerserve.steering.plan import SequenceEdits
from steerserve.steering.site import TokenRole

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from jaxtyping import Float
    from torch import Tensor

    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.engine.protocols import Probe
    from steerserve.steering.resolved import ResolvedSteering

    Hook = Callable[[Tensor], Tensor | None]


@dataclass(frozen=True, slots=True)
class Continuation:
    """A prompt and what was generated after it."""

    prompt_ids: tuple[int, ...]
    generated_ids: tuple[int, ...]


def mean_kl(engine: Probe, text: Continuation, steering: ResolvedSteering | None) -> float:
    """Return KL(steered || unsteered) in nats, the mean over the places where a token was chosen.

    Both read the same tokens, so that a text that has drifted away is not compared with another.
    """
    if steering is None or not steering.effective_edits:
        return 0.0

    def read() -> float:
        steered = _log_probs(engine, text, _steered_hooks(engine, text, steering))
        unsteered = _log_probs(engine, text, {})
        return float((steered.exp() * (steered - unsteered)).sum(-1).mean())

    return engine.run_exclusive(read).result()


def largest_activation(engine: Probe, text: Continuation, dictionary: Dictionary, feature: int) -> float:
    """Return the largest activation of a feature over the generated tokens, as the unsteered model reads them.

    Special tokens and sinks do not count, nor does a text of none: 0.
    """
    start = len(text.prompt_ids)

    def read() -> float:
        lens = engine.lens
        ids = torch.tensor([(*text.prompt_ids, *text.generated_ids)])
        found = lens.read(ids, dictionary.hook_names)
        values = {hook_name: value[0, start:].float() for hook_name, value in found.items()}
        span = Span(0, text.generated_ids, start, values)
        _, parts = encode_counted(dictionary, span, lens.tokenizer.special_ids)
        return max((float(acts[:, feature].max()) for acts in parts), default=0.0)

    return engine.run_exclusive(read).result() if text.generated_ids else 0.0


def repetition(ids: Sequence[int], size: int = 3) -> float:
    """Return the share of n-grams of tokens that were there before."""
    grams = [tuple(ids[place : place + size]) for place in range(len(ids) - size + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _log_probs(engine: Probe, text: Continuation, hooks: Mapping[str, Hook]) -> Float[Tensor, "places vocab"]:
    """Return what the model says at each place where a token was chosen, the first after the prompt."""
    ids = torch.tensor([(*text.prompt_ids, *text.generated_ids[:-1])], device=engine.lens.device)
    with contextlib.ExitStack() as stack:
        for hook_name, fn in hooks.items():
            stack.enter_context(engine.lens.hooked(hook_name, fn))
        logits = engine.lens.forward(ids, use_cache=False, logits_to_keep=max(len(text.generated_ids), 1))
    return logits[0].float().log_softmax(-1)


def _steered_hooks(engine: Probe, text: Continuation, steering: ResolvedSteering) -> dict[str, Hook]:
    """Return what to call while prompt and generated tokens are read in one go, each part edited as it was."""
    special = engine.lens.tokenizer.special_ids
    edits = SequenceEdits(steering, engine.median_norms, engine.lens.device)
    read = text.generated_ids[:-1]  # nothing was computed at the last one
    prompt = edits.prompt_hooks([TokenRole(token_id in special, None) for token_id in text.prompt_ids])
    places = [TokenRole(token_id in special, place) for place, token_id in enumerate(read)]
    generated = edits.generated_hooks(places) if places else {}
    start = len(text.prompt_ids)

    def both(hook_name: str) -> Hook:
        def edit(resid: Tensor) -> Tensor:
            parts = ((resid[:, :start], prompt.get(hook_name)), (resid[:, start:], generated.get(hook_name)))
            edited = [(part, fn(part) if fn is not None else None) for part, fn in parts]
            return torch.cat([part if changed is None else changed for part, changed in edited], dim=1)

        return edit

    return {hook_name: both(hook_name) for hook_name in {**prompt, **generated}}
