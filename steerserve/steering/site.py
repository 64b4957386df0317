"""What happens at one hook point during a forward pass: activations are read, then edits made. Engine thread only."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from steerserve.steering.apply import (
    NUM_SUMS,
    Edits,
    Encoding,
    Lines,
    Reads,
    apply_edits,
    apply_full,
    changed,
    read,
    stack_rows,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from jaxtyping import Float
    from torch import Tensor

    from steerserve.steering.layout import HookPart


class TokenRole(NamedTuple):
    """What the position rules of an edit ask of a token."""

    is_special: bool
    generated_index: int | None
    """None for a prompt token."""


class Changes:
    """What edits do to the activations that they go by, during one pass, for those rows that are watched."""

    def __init__(self, rows: Collection[int | None]) -> None:
        """Keep what is done to `rows`; None where all lines are one sequence's."""
        self._rows = rows
        self._tables: dict[int | None, Float[Tensor, "both lines edits"]] = {}

    def note(self, member: Member, places: Tensor, acts: Tensor, delta: Tensor) -> None:
        """Keep activations and their changes `[lines, edits]`, of the edits at `places` and padding after them."""
        if member.row not in self._rows:
            return
        table = self._tables.get(member.row)
        if table is None:
            table = self._tables[member.row] = acts.new_zeros(2, len(acts), len(member.sums))
        for kept, values in zip(table, (acts, delta), strict=True):
            kept.index_copy_(1, places, values[:, : len(places)])

    def of(self, row: int | None) -> Float[Tensor, "both lines edits"] | None:
        """Return activations and changes of all edits of a sequence, 0 where nothing was done; None without any."""
        return self._tables.get(row)


class Pass:
    """One forward pass over some tokens: what they are, and what was read of them so far."""

    def __init__(
        self, tokens: Sequence[TokenRole], num_columns: int, device: torch.device, changes: Changes | None = None
    ) -> None:
        """Begin to compute these tokens, one a line; `changes` takes what edits do to their activations."""
        self.changes = changes
        marks = [(float(token.generated_index or 0), float(token.is_special)) for token in tokens]
        self.lines = Lines(*torch.tensor(marks, dtype=torch.float32, device=device)[:, :, None].unbind(1))
        self.acts = torch.zeros(len(tokens), num_columns, device=device)
        self.encodings: dict[tuple[int | None, str], Encoding] = {}
        """By row and dictionary, for edits of features that cannot be read alone."""


class Member(NamedTuple):
    """A sequence's part at a hook point."""

    row: int | None
    """Its line of a decode batch; None where all lines are its own."""
    part: HookPart
    sums: Float[Tensor, "edits sums"]
    """Of all edits of the sequence; counted on here."""

    @property
    def lines(self) -> slice:
        """Its own."""
        return slice(None) if self.row is None else slice(self.row, self.row + 1)


class Site:
    """One hook point: of all rows of a decode batch, or of the prompt of one sequence."""

    def __init__(self, members: Sequence[Member]) -> None:
        """Stack what the members carry."""
        self._members = members
        self._reads: Reads | None = None
        self._edits: Edits | None = None
        self._sums: Tensor | None = None
        reading = [member for member in members if member.part.reads is not None]
        self._editing = [member for member in members if member.part.edits is not None]
        self._read_rows, self._edit_rows = _rows(reading), _rows(self._editing)
        if reading:
            self._reads = stack_rows([member.part.reads for member in reading])
        if self._editing:
            self._edits = stack_rows([member.part.edits for member in self._editing])
            shape = (*self._edits.direction_norm.shape, NUM_SUMS)
            self._sums = torch.zeros(shape, dtype=torch.float64, device=self._edits.direction.device)
        self._is_edited = bool(self._editing) or any(member.part.full_edits for member in members)

    def run(self, now: Pass, value: Float[Tensor, "rows pos width"]) -> Float[Tensor, "rows pos width"] | None:
        """Return what becomes of the value, None where it is only read."""
        x = value.flatten(0, 1)
        self._read(now, x)
        return self._edited(now, x).to(x.dtype).view(value.shape) if self._is_edited else None

    def flush(self) -> None:
        """Add what was counted to the members' sums."""
        if self._sums is None:
            return
        for member, sums in zip(self._editing, self._sums, strict=True):
            places = _places(member)
            member.sums.index_add_(0, places, sums[: len(places)])
        self._sums.zero_()

    def _read(self, now: Pass, x: Tensor) -> None:
        if self._reads is not None:
            acts = read(_taken(x, self._read_rows).float(), self._reads)
            columns = self._reads.columns
            if self._read_rows is None:
                now.acts[:, columns[0]] = acts
            else:
                now.acts[self._read_rows[:, None], columns] = acts
        for member in self._members:
            for full in member.part.full_reads:
                # A copy: some blocks add to their input in place before the edit is made.
                mine = x[member.lines].to(torch.float32, copy=True)
                encoding = Encoding(mine, full.dictionary.encode(mine))
                now.acts[member.lines, full.columns] = encoding.acts[:, full.features]
                if full.is_kept:
                    now.encodings[member.row, full.dictionary.id] = encoding

    def _edited(self, now: Pass, x: Tensor) -> Tensor:
        out = x.to(torch.float32, copy=True)  # all changes of a row are summed in float32 and rounded once
        rows = self._edit_rows
        if self._edits is not None:
            mine = _taken(out, rows)
            acts, gate_acts = (
                now.acts[:, columns[0]] if rows is None else now.acts[rows[:, None], columns]
                for columns in (self._edits.act_columns, self._edits.gate_columns)
            )
            lines = Lines(*(_taken(mark, rows) for mark in now.lines))
            change = apply_edits(mine, self._edits, acts, gate_acts, lines)
            self._count(change.sums)
            self._note(now, acts, change.delta)
            mine = changed(mine, change.dx)
            out = mine if rows is None else out.index_copy_(0, rows, mine)
        for member in self._members:
            for places, full in member.part.full_edits:
                own = member.lines
                encoding = now.encodings[member.row, full.dictionary.id]
                gate_acts = now.acts[own, full.gate_columns[0]]
                lines = Lines(*(mark[own] for mark in now.lines))
                change = apply_full(x[own].float(), full, encoding, gate_acts, lines)
                member.sums.index_add_(0, places, change.sums.sum(0))
                if now.changes is not None:
                    now.changes.note(member, places, encoding.acts[:, full.features], change.delta)
                out[own] = changed(out[own], change.dx)
        return out

    def _count(self, sums: Float[Tensor, "lines edits sums"]) -> None:
        if self._edit_rows is not None and self._sums is not None:
            self._sums.add_(sums)
            return
        [member] = self._editing
        member.sums.index_add_(0, _places(member), sums.sum(0))

    def _note(self, now: Pass, acts: Float[Tensor, "lines edits"], delta: Float[Tensor, "lines edits"]) -> None:
        if now.changes is None:
            return
        for line, member in enumerate(self._editing):
            own = slice(None) if member.row is None else slice(line, line + 1)
            now.changes.note(member, _places(member), acts[own], delta[own])


def _rows(members: Sequence[Member]) -> Tensor | None:
    """Return the lines of these members, None where all are one member's."""
    rows = [member.row for member in members if member.row is not None]
    return torch.tensor(rows, device=members[0].sums.device) if rows else None


def _places(member: Member) -> Tensor:
    if member.part.places is None:
        message = "a part with edits always knows their places"
        raise RuntimeError(message)
    return member.part.places


def _taken(values: Tensor, rows: Tensor | None) -> Tensor:
    return values if rows is None else values.index_select(0, rows)
