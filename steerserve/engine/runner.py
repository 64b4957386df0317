"""One forward pass: the scheduled tokens in, each row's edits applied, the next token of each row out.

Engine thread only, in inference mode. The runner knows tensors; the scheduler decides which sequence is next.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

from steerserve.core.errors import EngineError, InvalidRequestError, SteerserveError
from steerserve.engine.request import TokenReadings
from steerserve.engine.sampling import Choice, choose, read_logprob
from steerserve.engine.watching import Watcher, WatchPlan
from steerserve.model.kv_cache import SlotCache
from steerserve.model.packed import MIN_ROWS
from steerserve.steering.plan import BatchPlan, SequenceEdits
from steerserve.steering.site import TokenRole

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from collections.abc import Sequence as Rows

    from torch import Tensor

    from steerserve.engine.sequence import Sequence
    from steerserve.engine.watching import WatchPass
    from steerserve.model.lens import LensModel
    from steerserve.steering.plan import HookFns

_FILLER = TokenRole(is_special=True, generated_index=0)
"""Role of the rows that only fill up a batch."""
_AUTO_CHUNK = {"cpu": 64, "cuda": 512}


def default_chunk(device: torch.device) -> int:
    """Return how many prompt tokens are worth computing between two decode steps."""
    return _AUTO_CHUNK.get(device.type, 64)


def not_finite_error(sequence: Sequence) -> SteerserveError:
    """Return the error for a sequence whose logits are not finite."""
    if sequence.edits is None:
        return EngineError("The model's output is not finite.")
    message = "With this steering the model's output is not finite. Use smaller scales or a smaller strength."
    return InvalidRequestError(message, param="steering")


class Runner:
    """The model, the cache and the plan of the running batch."""

    def __init__(self, lens: LensModel, num_slots: int, context: int, median_norms: Mapping[str, float]) -> None:
        """Run `lens` over `num_slots` slots of `context` tokens; `median_norms` of the hook points tell sinks apart."""
        self.lens = lens
        self.cache = SlotCache(lens, max(num_slots, MIN_ROWS), context)
        self.median_norms = median_norms
        self._plan: BatchPlan | None = None
        self._watch_plan: WatchPlan | None = None
        self._planned: list[Sequence] = []

    def open_edits(self, sequence: Sequence) -> None:
        """Prepare the sequence's edits."""
        if sequence.request.steering is not None:
            sequence.edits = SequenceEdits(sequence.request.steering, self.median_norms, self.lens.device)

    def prefill(self, sequence: Sequence, start: int, stop: int) -> Tensor | None:
        """Compute prompt tokens `[start, stop)`; return the logits `[vocab]` after the last token of the prompt.

        Raises:
            InvalidRequestError: the logits are infinite or NaN, and the sequence has edits.
            EngineError: the logits are infinite or NaN without edits.
        """
        ids = torch.tensor([sequence.prompt_ids[start:stop]], device=self.lens.device)
        num_prompt_logprobs = sequence.request.sampling.num_prompt_logprobs
        is_whole = stop == len(sequence.prompt_ids)
        inputs = self.cache.view_prefill(sequence.slot, start, stop)
        watched = self._watch_prompt(sequence, start, stop)
        roles = sequence.prompt_roles(start, stop) if sequence.edits or watched is not None else []
        hooks = {}
        if sequence.edits:
            hooks = sequence.edits.prompt_hooks(roles, watched.changes if watched is not None else None)
        with self._attached(watched.hooks(hooks) if watched is not None else hooks):
            keep = 0 if num_prompt_logprobs is not None else 1
            logits = self.lens.forward(ids, **inputs, logits_to_keep=keep)[0]
        if (is_whole or num_prompt_logprobs is not None) and not bool(torch.isfinite(logits).all()):
            raise not_finite_error(sequence)
        if num_prompt_logprobs is not None:
            self._read_prompt_logprobs(sequence, start, logits)
        if watched is not None:
            _read_prompt_features(sequence, start, watched, roles)
        return logits[-1].to(torch.float32, copy=True) if is_whole else None

    def decode(self, sequences: Rows[Sequence]) -> list[Choice]:
        """Compute each sequence's newest token and choose its next one."""
        plan = self._plan_for(sequences)
        watched = self._watch_plan.begin() if self._watch_plan is not None else None
        num_filling = max(MIN_ROWS - len(sequences), 0)
        ids = [sequence.generated[-1] for sequence in sequences] + [0] * num_filling
        positions = [sequence.position for sequence in sequences]
        columns = torch.tensor(positions + [self.cache.context] * num_filling, device=self.lens.device)
        hooks = {}
        if plan is not None:
            roles = [sequence.newest_role for sequence in sequences] + [_FILLER] * num_filling
            hooks = plan.hooks(roles, watched.changes if watched is not None else None)
        inputs = self.cache.view_decode(columns, max(positions))
        with self._attached(watched.hooks(hooks) if watched is not None else hooks):
            tokens = torch.tensor(ids, device=self.lens.device)[:, None]
            logits = self.lens.forward(tokens, **inputs, logits_to_keep=1)[: len(sequences), -1]
        if watched is not None:
            watching = [sequence for sequence in sequences if sequence.request.watch is not None]
            readings = watched.readings([[sequence.newest_role] for sequence in watching])
            for sequence, [reading] in zip(watching, readings, strict=True):
                sequence.readings = reading
        return choose(logits.float(), sequences)

    def choose_first(self, sequence: Sequence, logits: Tensor) -> Choice:
        """Choose the token after the prompt."""
        return choose(logits[None], [sequence])[0]

    def flush_plan(self) -> None:
        """Add the plan's counts to the receipts, and drop the plan; the next step stacks its rows again."""
        if self._plan is not None:
            self._plan.flush()
        self.drop_plan()

    def drop_plan(self) -> None:
        """Drop the plan and its counts."""
        self._plan = self._watch_plan = None
        self._planned = []

    def _plan_for(self, sequences: Rows[Sequence]) -> BatchPlan | None:
        if self._planned != list(sequences):
            self.flush_plan()
            self._planned = list(sequences)
            if any(sequence.edits is not None and sequence.edits.touches_generated for sequence in sequences):
                self._plan = BatchPlan([sequence.edits for sequence in sequences])
            watchers = [
                Watcher(sequence.request.watch, sequence.edits, range(row, row + 1), row)
                for row, sequence in enumerate(sequences)
                if sequence.request.watch is not None
            ]
            if watchers:
                self._watch_plan = WatchPlan(watchers, self.lens.device)
        return self._plan

    def _watch_prompt(self, sequence: Sequence, start: int, stop: int) -> WatchPass | None:
        """Begin to read prompt tokens `[start, stop)`: all if the request watches its prompt, else its last token."""
        watch, num_tokens = sequence.request.watch, stop - start
        if watch is None or not (watch.prompt or stop == len(sequence.prompt_ids)):
            return None
        tokens = range(num_tokens) if watch.prompt else range(num_tokens - 1, num_tokens)
        return WatchPlan([Watcher(watch, sequence.edits, tokens, None)], self.lens.device).begin()

    @contextlib.contextmanager
    def _attached(self, hooks: HookFns) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for hook_name, fn in hooks.items():
                stack.enter_context(self.lens.hooked(hook_name, fn))
            yield

    def _read_prompt_logprobs(self, sequence: Sequence, start: int, logits: Tensor) -> None:
        """Read the log-probability of each prompt token from the logits before it."""
        num_top = sequence.request.sampling.num_prompt_logprobs or 0
        if start == 0:
            sequence.prompt_logprobs.append(None)
        following = sequence.prompt_ids[start + 1 : start + 1 + logits.shape[0]]
        for row, token_id in zip(logits, following, strict=False):
            sequence.prompt_logprobs.append(read_logprob(row.float().log_softmax(-1), token_id, num_top))


def _read_prompt_features(sequence: Sequence, start: int, watched: WatchPass, roles: Rows[TokenRole]) -> None:
    """Keep the readings of prompt tokens from `start` on; those of the last belong to the first generated token too."""
    stop = start + len(roles)
    if sequence.request.watch is None or not sequence.request.watch.prompt:
        [[sequence.readings]] = watched.readings([roles[-1:]])
        return
    [readings] = watched.readings([roles])
    entries = zip(sequence.prompt_ids[start:stop], range(start, stop), readings, strict=True)
    sequence.prompt_features += [TokenReadings(*entry) for entry in entries]
    sequence.readings = readings[-1]
