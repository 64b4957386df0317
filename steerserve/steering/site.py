"""What steering does at one hook point during a forward pass: read activations, then edit. Engine thread only."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from steerserve.steering.apply import (
    SUM_NAMES,
    Edits,
    Encoding,
    Reads,
    TokenRoles,
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
    """What edits need to know about a token."""

    is_special: bool
    generated_index: int | None
    """Index among the generated tokens; None for a prompt token."""


class Changes:
    """What edits do to their activations during one pass, for the rows that are watched."""

    def __init__(self, rows: Collection[int | None]) -> None:
        """Keep the changes of `rows`; the row None stands for a pass whose tokens are all one sequence's."""
        self._rows = rows
        self._tables: dict[int | None, Float[Tensor, "both tokens edits"]] = {}

    def note(self, member: SiteMember, edit_indices: Tensor, acts: Tensor, delta: Tensor) -> None:
        """Keep activations and their changes `[tokens, edits]`, of the edits with these indices and padding after."""
        if member.row not in self._rows:
            return
        table = self._tables.get(member.row)
        if table is None:
            table = self._tables[member.row] = acts.new_zeros(2, len(acts), len(member.sums))
        for kept, values in zip(table, (acts, delta), strict=True):
            kept.index_copy_(1, edit_indices, values[:, : len(edit_indices)])

    def of(self, row: int | None) -> Float[Tensor, "both tokens edits"] | None:
        """Return activations and changes of a sequence's edits, 0 if an edit did nothing; None if none was noted."""
        return self._tables.get(row)


class Pass:
    """One forward pass: the roles of its tokens, and the activations read so far."""

    def __init__(
        self, roles: Sequence[TokenRole], num_columns: int, device: torch.device, changes: Changes | None = None
    ) -> None:
        """Begin to compute tokens with these roles; `changes` takes what edits do to their activations."""
        self.changes = changes
        numbers = [[float(role.generated_index or 0), float(role.is_special)] for role in roles]
        generated_index, is_special = torch.tensor(numbers, dtype=torch.float32, device=device)[:, :, None].unbind(1)
        self.roles = TokenRoles(generated_index=generated_index, is_special=is_special)
        self.acts = torch.zeros(len(roles), num_columns, device=device)
        self.encodings: dict[tuple[int | None, str], Encoding] = {}
        """Encodings by row and dictionary, for edits that need the whole encoding."""


class SiteMember(NamedTuple):
    """One sequence's part of a hook point."""

    row: int | None
    """Row of the decode batch; None if all tokens of the pass are this sequence's."""
    part: HookPart
    sums: Float[Tensor, "edits sums"]
    """Sums of all edits of the sequence; the site adds to them."""

    @property
    def tokens(self) -> slice:
        """The tokens of the pass that are this sequence's."""
        return slice(None) if self.row is None else slice(self.row, self.row + 1)


class Site:
    """One hook point, for all rows of a decode batch, or for the prompt of one sequence."""

    def __init__(self, members: Sequence[SiteMember]) -> None:
        """Stack the reads and edits of the members."""
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
            shape = (*self._edits.direction_norm.shape, len(SUM_NAMES))
            self._sums = torch.zeros(shape, dtype=torch.float64, device=self._edits.direction.device)
        self._is_edited = bool(self._editing) or any(member.part.full_edits for member in members)

    def run(self, now: Pass, value: Float[Tensor, "rows pos width"]) -> Float[Tensor, "rows pos width"] | None:
        """Return the edited value; None if the value is only read."""
        x = value.flatten(0, 1)
        self._read(now, x)
        return self._edited(now, x).to(x.dtype).view(value.shape) if self._is_edited else None

    def flush(self) -> None:
        """Add the counts of this site to the members' sums."""
        if self._sums is None:
            return
        for member, sums in zip(self._editing, self._sums, strict=True):
            edit_indices = _edit_indices(member)
            member.sums.index_add_(0, edit_indices, sums[: len(edit_indices)])
        self._sums.zero_()

    def _read(self, now: Pass, x: Tensor) -> None:
        if self._reads is not None:
            acts = read(_rows_of(x, self._read_rows).float(), self._reads)
            columns = self._reads.columns
            if self._read_rows is None:
                now.acts[:, columns[0]] = acts
            else:
                now.acts[self._read_rows[:, None], columns] = acts
        for member in self._members:
            for full in member.part.full_reads:
                # A copy: some blocks add to their input in place before the edit is made.
                vectors = x[member.tokens].to(torch.float32, copy=True)
                encoding = Encoding(vectors, full.dictionary.encode(vectors))
                now.acts[member.tokens, full.columns] = encoding.acts[:, full.features]
                if full.is_kept:
                    now.encodings[member.row, full.dictionary.id] = encoding

    def _edited(self, now: Pass, x: Tensor) -> Tensor:
        out = x.to(torch.float32, copy=True)  # all changes of a row are summed in float32 and rounded once
        rows = self._edit_rows
        if self._edits is not None:
            vectors = _rows_of(out, rows)
            acts, gate_acts = (
                now.acts[:, columns[0]] if rows is None else now.acts[rows[:, None], columns]
                for columns in (self._edits.act_columns, self._edits.gate_columns)
            )
            roles = TokenRoles(*(_rows_of(numbers, rows) for numbers in now.roles))
            change = apply_edits(vectors, self._edits, acts, gate_acts, roles)
            self._count(change.sums)
            self._note(now, acts, change.delta)
            vectors = changed(vectors, change.dx)
            out = vectors if rows is None else out.index_copy_(0, rows, vectors)
        for member in self._members:
            for edit_indices, full in member.part.full_edits:
                own = member.tokens
                encoding = now.encodings[member.row, full.dictionary.id]
                gate_acts = now.acts[own, full.gate_columns[0]]
                roles = TokenRoles(*(numbers[own] for numbers in now.roles))
                change = apply_full(x[own].float(), full, encoding, gate_acts, roles)
                member.sums.index_add_(0, edit_indices, change.sums.sum(0))
                if now.changes is not None:
                    now.changes.note(member, edit_indices, encoding.acts[:, full.features], change.delta)
                out[own] = changed(out[own], change.dx)
        return out

    def _count(self, sums: Float[Tensor, "tokens edits sums"]) -> None:
        if self._edit_rows is not None and self._sums is not None:
            self._sums.add_(sums)
            return
        [member] = self._editing
        member.sums.index_add_(0, _edit_indices(member), sums.sum(0))

    def _note(self, now: Pass, acts: Float[Tensor, "tokens edits"], delta: Float[Tensor, "tokens edits"]) -> None:
        if now.changes is None:
            return
        for index, member in enumerate(self._editing):
            own = slice(None) if member.row is None else slice(index, index + 1)
            now.changes.note(member, _edit_indices(member), acts[own], delta[own])


def _rows(members: Sequence[SiteMember]) -> Tensor | None:
    """Return the rows of these members; None if all tokens are one member's."""
    rows = [member.row for member in members if member.row is not None]
    return torch.tensor(rows, device=members[0].sums.device) if rows else None


def _edit_indices(member: SiteMember) -> Tensor:
    if member.part.edit_indices is None:
        message = "A hook part has edits without their indices."
        raise RuntimeError(message)
    return member.part.edit_indices


def _rows_of(values: Tensor, rows: Tensor | None) -> Tensor:
    return values if rows is None else values.index_select(0, rows)
