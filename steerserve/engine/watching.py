"""What watched rows activate during one forward pass: read at hook points, encoded together, brought over at once.

Engine thread only. Whoever does not watch pays nothing: their rows are not read, and without a watched row nothing is
attached. Reading changes no value, so it changes no bit of what is generated.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

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
    from steerserve.steering.site import TokenPosition

Readings = Mapping[str, FeatureReading]
"""Of one position, by dictionary id."""

_MAX_ENCODED = 1 << 24
"""Activations that are encoded at once; a wide dictionary would fill the memory with a long chunk's."""


class Watcher(NamedTuple):
    """A sequence that watches, and which lines of the pass it reads."""

    watch: Watch
    edits: SequenceEdits | None
    lines: range
    row: int | None
    """Of a decode batch; None where all lines are its own."""


class WatchPlan:
    """Who watches what in a batch; valid while its rows stay the same."""

    def __init__(self, watchers: Sequence[Watcher], device: torch.device) -> None:
        """Gather the lines that each dictionary reads."""
        self.watchers = watchers
        groups: dict[int, _Group] = {}
        for place, watcher in enumerate(watchers):
            for dictionary in watcher.watch.dictionaries:
                group = groups.setdefault(id(dictionary), _Group(dictionary))
                group.members.append(place)
                group.lines += watcher.lines
                group.features += [watcher.watch.features] * len(watcher.lines)
                group.top = max(group.top, min(watcher.watch.top, dictionary.d_sae))
        self.reads = [_Read(group, device) for group in groups.values()]

    def begin(self) -> WatchPass:
        """Begin to read one forward pass."""
        return WatchPass(self)


class WatchPass:
    """One forward pass that is watched."""

    def __init__(self, plan: WatchPlan) -> None:
        """Begin with nothing read."""
        self._plan = plan
        self._x: dict[int, Tensor] = {}
        self._norms: dict[int, Tensor] = {}
        self.changes = Changes(frozenset(watcher.row for watcher in plan.watchers if watcher.edits is not None))
        """What edits do during the pass: whoever makes them notes it here."""

    def hooks(self, edits: HookFns) -> HookFns:
        """Return what to call during the pass: the reads, and after them what `edits` does at the same hook point."""
        reads: dict[str, list[Callable[[Tensor], None]]] = {}
        for place, one in enumerate(self._plan.reads):
            for hook_name in one.dictionary.hook_names:
                reads.setdefault(hook_name, []).append(functools.partial(self._read, place, hook_name))
        found = {name: functools.partial(_in_order, some, edits.get(name)) for name, some in reads.items()}
        return {**edits, **found}

    def readings(self, tokens: Sequence[Sequence[TokenPosition]]) -> list[list[Readings]]:
        """Return what each watcher's lines activate, given what tokens they are. Waits for the device once."""
        watchers, reads = self._plan.watchers, self._plan.reads
        encoded = [one.encode(self._x[place], self._norms[place]) for place, one in enumerate(reads)]
        numbers = _brought_over([*encoded, *(self._changes_of(watcher) for watcher in watchers)])
        found: list[list[dict[str, FeatureReading]]] = [[{} for _ in watcher.lines] for watcher in watchers]
        for one, rows in zip(reads, numbers, strict=False):
            following = iter(rows)
            for place in one.members:
                watcher, changes = watchers[place], numbers[len(reads) + place]
                for line, token in enumerate(tokens[place]):
                    edited: tuple[tuple[int, float], ...] = ()
                    if watcher.edits is not None and changes:
                        edited = watcher.edits.edited_acts(one.dictionary, changes[0][line], changes[1][line])
                    reading = one.reading(watcher.watch, token, next(following), edited)
                    found[place][line][one.dictionary.id] = reading
        return [[*lines] for lines in found]

    def _changes_of(self, watcher: Watcher) -> Float[Tensor, "both lines edits"]:
        table = self.changes.of(watcher.row)
        if table is None:
            return torch.empty(0, device=self._plan.reads[0].lines.device)
        return table if watcher.row is not None else table[:, watcher.lines.start : watcher.lines.stop]

    def _read(self, place: int, hook_name: str, value: Float[Tensor, "rows pos width"]) -> None:
        one = self._plan.reads[place]
        # Always a copy: some blocks add to their input in place afterwards.
        mine = value.flatten(0, 1).index_select(0, one.lines).float()
        if hook_name == one.dictionary.read_hook_name:
            self._x[place] = mine
        if hook_name == one.dictionary.hook_name:
            self._norms[place] = mine.norm(dim=-1)


@dataclass(slots=True)
class _Group:
    """All lines that one dictionary reads."""

    dictionary: Dictionary
    members: list[int] = field(default_factory=list)
    """Places of the watchers."""
    lines: list[int] = field(default_factory=list)
    features: list[tuple[int, ...]] = field(default_factory=list)
    """Of each line, those that are watched."""
    top: int = 0


class _Read:
    """How one dictionary reads its lines."""

    def __init__(self, group: _Group, device: torch.device) -> None:
        self.dictionary = group.dictionary
        self.members = group.members
        self.lines = torch.tensor(group.lines, device=device)
        self._top = group.top
        self._sink_norm = SINK_RATIO * group.dictionary.median_norm
        most = max(len(some) for some in group.features)
        padded = [[*some, *[0] * (most - len(some))] for some in group.features]
        self._features = torch.tensor(padded, dtype=torch.long, device=device)

    def encode(self, x: Float[Tensor, "lines d_in"], norms: Float[Tensor, " lines"]) -> Float[Tensor, "lines width"]:
        """Return of each line the norm, the strongest features, their activations, and those of watched features."""
        size = max(1, _MAX_ENCODED // self.dictionary.d_sae)
        parts = [
            self._strongest(self.dictionary.encode(some), watched)
            for some, watched in zip(x.split(size), self._features.split(size), strict=True)
        ]
        return torch.cat([norms[:, None].double(), torch.cat(parts)], dim=1)

    def reading(
        self, watch: Watch, token: TokenPosition, numbers: Sequence[float], edited: tuple[tuple[int, float], ...]
    ) -> FeatureReading:
        """Read what `encode` gave for one line."""
        if token.is_special or numbers[0] > self._sink_norm:
            skipped: Literal["special", "sink"] = "special" if token.is_special else "sink"
            return FeatureReading((), (0.0,) * len(watch.features), skipped, edited)
        acts, watched = 1 + self._top, 1 + 2 * self._top
        top = zip(numbers[1:acts], numbers[acts:watched], strict=True)
        return FeatureReading(
            top=tuple((int(feature), act) for feature, act in [*top][: watch.top] if act != 0),
            watch=tuple(numbers[watched : watched + len(watch.features)]),
            edited=edited,
        )

    def _strongest(self, acts: Float[Tensor, "lines d_sae"], watched: Tensor) -> Float[Tensor, "lines numbers"]:
        features = acts.abs().topk(self._top, dim=-1).indices
        values = acts.gather(-1, torch.cat([features, watched], dim=1)).nan_to_num()
        # Features go along as numbers, so that everything is brought over at once; float64 holds them exactly.
        return torch.cat([features.double(), values.double()], dim=1)


def _brought_over(tensors: Sequence[Tensor]) -> list[list[Any]]:
    """Return the tensors' numbers as nested lists, all in one transfer."""
    flat = torch.cat([one.double().flatten() for one in tensors]).cpu()
    parts = flat.split([one.numel() for one in tensors])
    return [part.view(one.shape).tolist() for part, one in zip(parts, tensors, strict=True)]


def _in_order(
    reads: Sequence[Callable[[Tensor], None]], edit: Callable[[Tensor], Tensor | None] | None, value: Tensor
) -> Tensor | None:
    for read in reads:
        read(value)
    return edit(value) if edit is not None else None
