"""Readings of watched rows during one forward pass: read at hook points, encoded together, moved to the CPU at once.

Engine thread only. Rows without a watch are not read, and a pass without a watched row has no reading hooks. Reading
changes no value, so it changes no bit of what is generated.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from steerserve.engine.readings import pack_readings, skipped_reading, split_for, unpack_reading
from steerserve.engine.request import FeatureReading
from steerserve.model.norms import SINK_RATIO
from steerserve.steering.site import Changes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor

    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.engine.request import Watch
    from steerserve.steering.plan import HookFns, SequenceEdits
    from steerserve.steering.site import TokenRole

Readings = Mapping[str, FeatureReading]
"""Readings at one position, by dictionary id."""


class Watcher(NamedTuple):
    """A sequence with a watch, and which tokens of the pass it reads."""

    watch: Watch
    edits: SequenceEdits | None
    tokens: range
    """Indices of the tokens in the pass."""
    row: int | None
    """Row of the decode batch; None if all tokens of the pass are this sequence's."""


class WatchPlan:
    """What the sequences of a batch watch; valid while its rows stay the same."""

    def __init__(self, watchers: Sequence[Watcher], device: torch.device) -> None:
        """Gather the tokens that each dictionary reads."""
        self.watchers = watchers
        groups: dict[int, _Group] = {}
        for index, watcher in enumerate(watchers):
            for dictionary in watcher.watch.dictionaries:
                group = groups.setdefault(id(dictionary), _Group(dictionary))
                group.watchers.append(index)
                group.tokens += watcher.tokens
                group.features += [watcher.watch.features] * len(watcher.tokens)
                group.top = max(group.top, min(watcher.watch.top, dictionary.d_sae))
        self.readers = [_DictionaryReader(group, device) for group in groups.values()]

    def begin(self) -> WatchPass:
        """Begin to read one forward pass."""
        return WatchPass(self)


class WatchPass:
    """One forward pass with watched rows."""

    def __init__(self, plan: WatchPlan) -> None:
        """Begin without any values."""
        self._plan = plan
        self._x: dict[int, Tensor] = {}
        self._norms: dict[int, Tensor] = {}
        self.changes = Changes(frozenset(watcher.row for watcher in plan.watchers if watcher.edits is not None))
        """What edits do during the pass, noted by the edits themselves."""

    def hooks(self, edits: HookFns) -> HookFns:
        """Return the functions to call during the pass: at each hook point the readers, and then `edits`."""
        reads: dict[str, list[Callable[[Tensor], None]]] = {}
        for index, reader in enumerate(self._plan.readers):
            for hook_name in reader.dictionary.hook_names:
                reads.setdefault(hook_name, []).append(functools.partial(self._read, index, hook_name))
        both = {name: functools.partial(_in_order, fns, edits.get(name)) for name, fns in reads.items()}
        return {**edits, **both}

    def readings(self, roles: Sequence[Sequence[TokenRole]]) -> list[list[Readings]]:
        """Return the readings of each watcher's tokens, given the tokens' roles. Waits for the device once."""
        watchers, readers = self._plan.watchers, self._plan.readers
        encoded = [reader.encode(self._x[index], self._norms[index]) for index, reader in enumerate(readers)]
        numbers = _moved_to_cpu([*encoded, *(self._changes_of(watcher) for watcher in watchers)])
        readings: list[list[dict[str, FeatureReading]]] = [[{} for _ in watcher.tokens] for watcher in watchers]
        for reader, rows in zip(readers, numbers, strict=False):
            following = iter(rows)
            for index in reader.watchers:
                watcher, changes = watchers[index], numbers[len(readers) + index]
                for token, role in enumerate(roles[index]):
                    edited: tuple[tuple[int, float], ...] = ()
                    if watcher.edits is not None and changes:
                        edited = watcher.edits.edited_acts(reader.dictionary, changes[0][token], changes[1][token])
                    reading = reader.reading(watcher.watch, role, next(following), edited)
                    readings[index][token][reader.dictionary.id] = reading
        return [[*tokens] for tokens in readings]

    def _changes_of(self, watcher: Watcher) -> Float[Tensor, "both tokens edits"] | Float[Tensor, "0"]:
        table = self.changes.of(watcher.row)
        if table is None:
            return torch.empty(0, device=self._plan.readers[0].tokens.device)
        return table if watcher.row is not None else table[:, watcher.tokens.start : watcher.tokens.stop]

    def _read(self, index: int, hook_name: str, value: Float[Tensor, "rows pos width"]) -> None:
        reader = self._plan.readers[index]
        # Always a copy: some blocks add to their input in place afterwards.
        x = value.flatten(0, 1).index_select(0, reader.tokens).float()
        if hook_name == reader.dictionary.read_hook_name:
            self._x[index] = x
        if hook_name == reader.dictionary.hook_name:
            self._norms[index] = x.norm(dim=-1)


@dataclass(slots=True)
class _Group:
    """All tokens that one dictionary reads."""

    dictionary: Dictionary
    watchers: list[int] = field(default_factory=list)
    """Indices of the watchers."""
    tokens: list[int] = field(default_factory=list)
    features: list[tuple[int, ...]] = field(default_factory=list)
    """Watched features of each token."""
    top: int = 0


class _DictionaryReader:
    """Reads one dictionary's tokens."""

    def __init__(self, group: _Group, device: torch.device) -> None:
        self.dictionary = group.dictionary
        self.watchers = group.watchers
        self.tokens = torch.tensor(group.tokens, device=device)
        self._top = group.top
        self._sink_norm = SINK_RATIO * group.dictionary.median_norm
        width = max(len(features) for features in group.features)
        padded = [[*features, *[0] * (width - len(features))] for features in group.features]
        self._features = torch.tensor(padded, dtype=torch.long, device=device)

    def encode(self, x: Float[Tensor, "tokens d_in"], norms: Float[Tensor, " tokens"]) -> Float[Tensor, "tokens width"]:
        """Return each token's norm, followed by its packed readings."""
        parts = [
            pack_readings(self.dictionary.encode(part), self._top, features)
            for part, features in zip(
                split_for(self.dictionary, x), split_for(self.dictionary, self._features), strict=True
            )
        ]
        return torch.cat([norms[:, None].double(), torch.cat(parts)], dim=1)

    def reading(
        self, watch: Watch, role: TokenRole, numbers: Sequence[float], edited: tuple[tuple[int, float], ...]
    ) -> FeatureReading:
        """Return the reading of one token from its row of `encode`."""
        if role.is_special or numbers[0] > self._sink_norm:
            return skipped_reading(len(watch.features), is_special=role.is_special, edited=edited)
        return unpack_reading(numbers[1:], self._top, watch.top, len(watch.features), edited)


def _moved_to_cpu(tensors: Sequence[Tensor]) -> list[list[Any]]:
    """Return the tensors' numbers as nested lists, all in one transfer."""
    flat = torch.cat([tensor.double().flatten() for tensor in tensors]).cpu()
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape).tolist() for part, tensor in zip(parts, tensors, strict=True)]


def _in_order(
    reads: Sequence[Callable[[Tensor], None]], edit: Callable[[Tensor], Tensor | None] | None, value: Tensor
) -> Tensor | None:
    for read in reads:
        read(value)
    return edit(value) if edit is not None else None
