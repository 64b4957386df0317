"""Measures of finished texts: likelihoods, divergence of the steered model from the unsteered one, activations.

All work comes in pieces of about an engine step's length; `steerserve.engine.background` runs them. The model reads
a text token for token as it was generated, and edits change the same tokens as then.
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
"""Size of one piece's logits in float32."""
_KEPT_BYTES = 1 << 28
"""Size of the prompts' keys and values that are kept for further samples."""
_P95 = 0.95


class CachedText:
    """A text that the model has read so far, steered or not; it can be continued or forked. Engine thread only."""

    def __init__(
        self, lens: LensModel, edits: SequenceEdits | None, cache: Cache, next_logits: Float[Tensor, " vocab"] | None
    ) -> None:
        """Continue the text in `cache`, whose last token gave `next_logits`; `edits` change all further tokens."""
        self._lens = lens
        self._edits = edits
        self._cache = cache
        self._next_logits = next_logits

    def fork(self, edits: SequenceEdits | None) -> CachedText:
        """Return a copy that continues from here with other edits; this text stays as it is."""
        # Layers replace their tensors when they grow, and so share the old ones.
        cache = copy.copy(self._cache)
        cache.layers = [copy.copy(layer) for layer in self._cache.layers]
        return CachedText(self._lens, edits, cache, self._next_logits)

    def skip(self, ids: Sequence[int]) -> None:
        """Read prompt tokens, whose likelihoods are not needed."""
        self._next_logits = self._forward(ids, self._roles(ids, None), {}, logits_to_keep=1)[-1]

    def read(self, ids: Sequence[int], start: int, hooks: HookFns) -> Float[Tensor, "tokens vocab"]:
        """Read generated tokens, the first of which has index `start`; return the logits that each was chosen from."""
        before = self._next_logits
        logits = self._forward(ids, self._roles(ids, start), hooks)
        self._next_logits = logits[-1]
        if before is None:
            message = "a generated text must follow a prompt"
            raise RuntimeError(message)
        return torch.cat((before[None], logits[:-1])).float()

    def _roles(self, ids: Sequence[int], start: int | None) -> list[TokenRole]:
        special = self._lens.tokenizer.special_ids
        return [
            TokenRole(token_id in special, None if start is None else start + index)
            for index, token_id in enumerate(ids)
        ]

    def _edit_hooks(self, roles: Sequence[TokenRole]) -> HookFns:
        if self._edits is None:
            return {}
        is_prompt = roles[0].generated_index is None
        return self._edits.prompt_hooks(roles) if is_prompt else self._edits.generated_hooks(roles)

    def _forward(
        self, ids: Sequence[int], roles: Sequence[TokenRole], hooks: HookFns, logits_to_keep: int = 0
    ) -> Float[Tensor, "tokens vocab"]:
        with contextlib.ExitStack() as stack:
            for hook_name, fn in (*self._edit_hooks(roles).items(), *hooks.items()):
                stack.enter_context(self._lens.hooked(hook_name, fn))
            return self._lens.forward(
                torch.tensor([list(ids)], device=self._lens.device),
                use_cache=True,
                past_key_values=self._cache,
                logits_to_keep=logits_to_keep,
            )[0]


class Scorer:
    """Measures the texts of one comparison, one at a time, on the thread that uses the model."""

    def __init__(
        self,
        lens: LensModel,
        median_norms: Mapping[str, float],
        dictionaries: Sequence[Dictionary],
        empty_ids: Sequence[int],
        features_by_token: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        """Read texts with `lens`.

        Args:
            lens: The model.
            median_norms: Median norm of the vectors at each hook point, by which edits recognise sinks.
            dictionaries: Dictionaries whose activations are measured.
            empty_ids: Tokens of the empty prompt, to which relevance compares; without them it is not measured.
            features_by_token: Features of those dictionaries whose activations are returned for every token.
        """
        self._lens = lens
        self._median_norms = median_norms
        self._dictionaries = tuple(dictionaries)
        self._empty_ids = tuple(empty_ids)
        self._features_by_token = features_by_token or {}
        self._prompts: OrderedDict[tuple[tuple[int, ...], str | None], CachedText] = OrderedDict()
        self._limit = _tokens_at_once(lens)

    def forget(self) -> None:
        """Free the memory of the prompts."""
        self._prompts.clear()

    def read(self, arm: Arm, token_ids: Sequence[int]) -> Pieces[SampleScore]:
        """Measure a text that an arm generated."""
        if not token_ids:
            return SampleScore(None, None if arm.is_steered else 0.0, None if arm.is_steered else 0.0, None)
        plain = (yield from self._after_prompt(arm.prompt_ids, None)).fork(None)
        empty = (yield from self._after_prompt(self._empty_ids, None)).fork(None) if self._empty_ids else None
        steered = None
        if arm.is_steered:
            steered = (yield from self._after_prompt(arm.prompt_ids, arm)).fork(self._edits(arm))
        log_likelihood, relevance, nats = 0.0, 0.0, []
        sums = _ActivationSums(self._dictionaries, self._lens.tokenizer.special_ids, self._features_by_token)
        for start in range(0, len(token_ids), self._limit):
            ids = token_ids[start : start + self._limit]
            log_probs = plain.read(ids, start, sums.hooks).log_softmax(-1)
            own = _chosen(log_probs, ids)
            log_likelihood += float(own.sum())
            yield
            if self._dictionaries:
                sums.count(ids, start)
                yield
            if steered is not None:
                nats.append(divergence(steered.read(ids, start, {}), log_probs))
                yield
            if empty is not None:
                relevance += float((own - _chosen(empty.read(ids, start, {}).log_softmax(-1), ids)).sum())
                yield
        kl = torch.cat(nats).double() if nats else torch.zeros(1)
        return SampleScore(
            surprise=-log_likelihood / len(token_ids),
            kl=float(kl.mean()),
            kl_p95=float(kl.quantile(_P95)),
            relevance=relevance / len(token_ids) if empty is not None else None,
            means=sums.means(),
            by_token=sums.by_token(),
        )

    def _edits(self, arm: Arm) -> SequenceEdits | None:
        if arm.steering is None:
            return None
        return SequenceEdits(arm.steering, self._median_norms, self._lens.device)

    def _after_prompt(self, prompt_ids: tuple[int, ...], arm: Arm | None) -> Pieces[CachedText]:
        """Return the text of a prompt, read with an arm's edits; None for the arm is the unsteered model."""
        steering = arm.steering if arm is not None else None
        key = (prompt_ids, steering.prompt_key if steering is not None else None)
        text = self._prompts.get(key)
        if text is None:
            edits = self._edits(arm) if arm is not None and key[1] is not None else None
            text = CachedText(self._lens, edits, self._lens.new_cache(), None)
            for start in range(0, len(prompt_ids), self._limit):
                text.skip(prompt_ids[start : start + self._limit])
                yield
            self._prompts[key] = text
        self._prompts.move_to_end(key)
        while len(self._prompts) > 1 and self._num_bytes() > _KEPT_BYTES:
            self._prompts.popitem(last=False)
        return text

    def _num_bytes(self) -> int:
        return self._lens.cache_bytes_per_token * sum(len(prompt_ids) for prompt_ids, _ in self._prompts)


class _ActivationSums:
    """Sums of activations over one text, without special tokens and sinks."""

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
        names = {name for dictionary in dictionaries for name in dictionary.hook_names}
        self.hooks: HookFns = {name: functools.partial(self._keep, name) for name in names}

    def _keep(self, hook_name: str, value: Tensor) -> None:
        self._values[hook_name] = value[0].float().clone()  # some blocks add to it in place

    def count(self, ids: Sequence[int], start: int) -> None:
        """Encode the values that the last pass left at the hook points."""
        span = Span(0, tuple(ids), start, self._values)
        for dictionary in self._dictionaries:
            keep, parts = encode_counted(dictionary, span, self._special_ids)
            features = self._features.get(dictionary.id)
            selected = []
            for acts in parts:
                total = self._sums.get(dictionary.id, 0.0) + acts.sum(0, dtype=torch.float64)
                self._sums[dictionary.id] = total
                if features is not None:
                    selected.append(acts[:, features].float())
            self._counts[dictionary.id] = self._counts.get(dictionary.id, 0) + int(keep.sum())
            if features is not None:
                rows = torch.full((len(ids), len(features)), torch.nan, device=keep.device)
                if selected:
                    rows[keep] = torch.cat(selected)
                self._rows[dictionary.id].append(rows)

    def means(self) -> dict[str, Float[Tensor, " d_sae"]]:
        """Return the means of the dictionaries for which any token counts."""
        return {name: (sums / self._counts[name]).float().cpu() for name, sums in self._sums.items()}

    def by_token(self) -> dict[str, Float[Tensor, "tokens features"]]:
        """Return the activations of the features that were requested for every token."""
        return {name: torch.cat(rows).cpu() for name, rows in self._rows.items() if rows}


def _chosen(log_probs: Float[Tensor, "tokens vocab"], ids: Sequence[int]) -> Float[Tensor, " tokens"]:
    """Return the log-probability of each token that was chosen."""
    chosen = torch.tensor(list(ids), device=log_probs.device)
    return log_probs.gather(-1, chosen[:, None])[:, 0].double()


def _tokens_at_once(lens: LensModel) -> int:
    kind = lens.device.type if lens.device.type in _PIECE_TOKENS else "cpu"
    return max(1, min(_PIECE_TOKENS[kind], _PIECE_BYTES[kind] // (4 * lens.vocab_size)))
