"""What the model says of finished texts: likelihoods, divergence of the steered model, activations.

All work comes in pieces of about an engine step's length; `steerserve.engine.background` runs them. Text is fed as it
was generated, token for token, and edits meet the same tokens as then.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections import OrderedDict
from typing import TYPE_CHECKING

import torch

from steerserve.compare.metrics import SampleScore
from steerserve.dose.pushed_text import divergence
from steerserve.engine.readings import Span, encode_counted
from steerserve.steering.plan import SequenceEdits
from steerserve.steering.site import TokenRole

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from jaxtyping import Float
    from torch import Tensor
    from transformers.cache_utils import Cache

    from steerserve.compare.arms import Arm
    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.engine.background import Pieces
    from steerserve.model.lens import LensModel

    HookFns = Mapping[str, Callable[[Tensor], Tensor | None]]

_PIECE_TOKENS = {"cpu": 64, "cuda": 2048}
_PIECE_BYTES = {"cpu": 1 << 25, "cuda": 1 << 28}
"""Of a piece's logits in float32."""
_KEPT_BYTES = 1 << 28
"""Of the prompts' keys and values that are kept for further samples."""
_P95 = 0.95


class CachedText:
    """A text on its way through the model, steered or not, that can be gone on with from any point. Engine thread."""

    def __init__(
        self, lens: LensModel, edits: SequenceEdits | None, cache: Cache, following: Float[Tensor, " vocab"] | None
    ) -> None:
        """Go on after what is in `cache`, with the logits that it left; `edits` change what is read from now on."""
        self._lens = lens
        self._edits = edits
        self._cache = cache
        self._following = following

    def fork(self, edits: SequenceEdits | None) -> CachedText:
        """Return another that goes on from here, with other edits from now on; this one stays as it is."""
        # Layers replace their tensors when they grow, and so share the old ones.
        cache = copy.copy(self._cache)
        cache.layers = [copy.copy(layer) for layer in self._cache.layers]
        return CachedText(self._lens, edits, cache, self._following)

    def skip(self, ids: Sequence[int]) -> None:
        """Read prompt tokens, whose own likelihood nobody asks for."""
        self._following = self._forward(ids, self._places(ids, None), {}, logits_to_keep=1)[-1]

    def read(self, ids: Sequence[int], start: int, hooks: HookFns) -> Float[Tensor, "tokens vocab"]:
        """Read generated tokens, the first of them number `start`; return the logits that each was chosen from."""
        before = self._following
        logits = self._forward(ids, self._places(ids, start), hooks)
        self._following = logits[-1]
        if before is None:
            message = "a generated text always follows a prompt"
            raise RuntimeError(message)
        return torch.cat((before[None], logits[:-1])).float()

    def _places(self, ids: Sequence[int], start: int | None) -> list[TokenRole]:
        special = self._lens.tokenizer.special_ids
        return [
            TokenRole(token_id in special, None if start is None else start + place)
            for place, token_id in enumerate(ids)
        ]

    def _edit_hooks(self, places: Sequence[TokenRole]) -> HookFns:
        if self._edits is None:
            return {}
        is_prompt = places[0].generated_index is None
        return self._edits.prompt_hooks(places) if is_prompt else self._edits.generated_hooks(places)

    def _forward(
        self, ids: Sequence[int], places: Sequence[TokenRole], hooks: HookFns, logits_to_keep: int = 0
    ) -> Float[Tensor, "tokens vocab"]:
        with contextlib.ExitStack() as stack:
            for hook_name, fn in (*self._edit_hooks(places).items(), *hooks.items()):
                stack.enter_context(self._lens.hooked(hook_name, fn))
            return self._lens.forward(
                torch.tensor([list(ids)], device=self._lens.device),
                use_cache=True,
                past_key_values=self._cache,
                logits_to_keep=logits_to_keep,
            )[0]


class Scorer:
    """Reads the texts of one comparison. One text at a time, on the thread that uses the model."""

    def __init__(
        self,
        lens: LensModel,
        median_norms: Mapping[str, float],
        dictionaries: Sequence[Dictionary],
        empty_ids: Sequence[int],
        features_by_token: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        """Read with `lens`.

        Args:
            lens: The model.
            median_norms: Of the vectors at each hook point, which tells sinks to edits of vectors.
            dictionaries: Whose activations are wanted.
            empty_ids: The prompt that says nothing, against which relevance is measured.
            features_by_token: Features of those dictionaries whose activation is wanted at every token.
        """
        self._lens = lens
        self._median_norms = median_norms
        self._dictionaries = tuple(dictionaries)
        self._empty_ids = tuple(empty_ids)
        self._features_by_token = features_by_token or {}
        self._prompts: OrderedDict[tuple[tuple[int, ...], str | None], CachedText] = OrderedDict()
        self._limit = _tokens_at_once(lens)

    def forget(self) -> None:
        """Give back the memory of the prompts."""
        self._prompts.clear()

    def read(self, arm: Arm, token_ids: Sequence[int]) -> Pieces[SampleScore]:
        """Return what the model says of a text that an arm generated."""
        if not token_ids:
            return SampleScore(None, None if arm.is_steered else 0.0, None if arm.is_steered else 0.0, None)
        plain = (yield from self._after_prompt(arm.prompt_ids, None)).fork(None)
        empty = (yield from self._after_prompt(self._empty_ids, None)).fork(None) if self._empty_ids else None
        steered = None
        if arm.is_steered:
            steered = (yield from self._after_prompt(arm.prompt_ids, arm)).fork(self._edits(arm))
        taken, relevance, nats = 0.0, 0.0, []
        tally = _Tally(self._dictionaries, self._lens.tokenizer.special_ids, self._features_by_token)
        for start in range(0, len(token_ids), self._limit):
            ids = token_ids[start : start + self._limit]
            log_probs = plain.read(ids, start, tally.hooks).log_softmax(-1)
            own = _chosen(log_probs, ids)
            taken += float(own.sum())
            yield
            if self._dictionaries:
                tally.count(ids, start)
                yield
            if steered is not None:
                nats.append(divergence(steered.read(ids, start, {}), log_probs))
                yield
            if empty is not None:
                relevance += float((own - _chosen(empty.read(ids, start, {}).log_softmax(-1), ids)).sum())
                yield
        kl = torch.cat(nats).double() if nats else torch.zeros(1)
        return SampleScore(
            surprise=-taken / len(token_ids),
            kl=float(kl.mean()),
            kl_p95=float(kl.quantile(_P95)),
            relevance=relevance / len(token_ids) if empty is not None else None,
            means=tally.means(),
            by_token=tally.by_token(),
        )

    def _edits(self, arm: Arm) -> SequenceEdits | None:
        if arm.steering is None:
            return None
        return SequenceEdits(arm.steering, self._median_norms, self._lens.device)

    def _after_prompt(self, prompt_ids: tuple[int, ...], arm: Arm | None) -> Pieces[CachedText]:
        """Return a prompt as an arm's edits leave it, None being the unsteered model."""
        steering = arm.steering if arm is not None else None
        key = (prompt_ids, steering.prompt_key if steering is not None else None)
        course = self._prompts.get(key)
        if course is None:
            edits = self._edits(arm) if arm is not None and key[1] is not None else None
            course = CachedText(self._lens, edits, self._lens.new_cache(), None)
            for start in range(0, len(prompt_ids), self._limit):
                course.skip(prompt_ids[start : start + self._limit])
                yield
            self._prompts[key] = course
        self._prompts.move_to_end(key)
        while len(self._prompts) > 1 and self._num_bytes() > _KEPT_BYTES:
            self._prompts.popitem(last=False)
        return course

    def _num_bytes(self) -> int:
        return self._lens.cache_bytes_per_token * sum(len(prompt_ids) for prompt_ids, _ in self._prompts)


class _Tally:
    """Sums of activations over one text, special tokens and sinks left out."""

    def __init__(
        self,
        dictionaries: Sequence[Dictionary],
        special_ids: frozenset[int],
        features_by_token: Mapping[str, Sequence[int]],
    ) -> None:
        self._dictionaries = dictionaries
        self._special_ids = special_ids
        self._features = {name: list(features) for name, features in features_by_token.items()}
        self._rows: dict[str, list[Tensor]] = {name: [] for name in self._features}
        self._values: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        names = {name for one in dictionaries for name in one.hook_names}
        self.hooks: HookFns = {name: functools.partial(self._keep, name) for name in names}

    def _keep(self, hook_name: str, value: Tensor) -> None:
        self._values[hook_name] = value[0].float().clone()  # some blocks add to it in place

    def count(self, ids: Sequence[int], start: int) -> None:
        """Encode what the last pass left at the hook points."""
        span = Span(0, tuple(ids), start, self._values)
        for dictionary in self._dictionaries:
            keep, parts = encode_counted(dictionary, span, self._special_ids)
            wanted = self._features.get(dictionary.id)
            picked = []
            for acts in parts:
                sums = acts.sum(0, dtype=torch.float64)
                self._sums[dictionary.id] = self._sums.get(dictionary.id, 0.0) + sums
                if wanted is not None:
                    picked.append(acts[:, wanted].float())
            self._counts[dictionary.id] = self._counts.get(dictionary.id, 0) + int(keep.sum())
            if wanted is not None:
                rows = torch.full((len(ids), len(wanted)), torch.nan, device=keep.device)
                if picked:
                    rows[keep] = torch.cat(picked)
                self._rows[dictionary.id].append(rows)

    def means(self) -> dict[str, Float[Tensor, " d_sae"]]:
        """Return the means of those dictionaries that read any token."""
        return {name: (sums / self._counts[name]).float().cpu() for name, sums in self._sums.items()}

    def by_token(self) -> dict[str, Float[Tensor, "tokens features"]]:
        """Return the activations that are wanted at every token."""
        return {name: torch.cat(rows).cpu() for name, rows in self._rows.items() if rows}


def _chosen(log_probs: Float[Tensor, "tokens vocab"], ids: Sequence[int]) -> Float[Tensor, " tokens"]:
    places = torch.tensor(list(ids), device=log_probs.device)
    return log_probs.gather(-1, places[:, None])[:, 0].double()


def _tokens_at_once(lens: LensModel) -> int:
    kind = lens.device.type if lens.device.type in _PIECE_TOKENS else "cpu"
    return max(1, min(_PIECE_TOKENS[kind], _PIECE_BYTES[kind] // (4 * lens.vocab_size)))
