"""Keys and values of all slots, in fixed tensors that transformers' attention reads as views.

Columns `[0, context)` of a slot hold its tokens. Rows that only fill up a batch write to column `context`, which is
never read. `view_prefill` or `view_decode` set the rows and columns of a forward pass before it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

    from steerserve.model.lens import LensModel

_COLUMN_STEP = 64
"""Decode reads a multiple of this many columns, so that attention has few shapes."""


class SlotCache(Cache):
    """A static cache of `[num_slots, heads, context + 1, d_head]` for each layer. Engine thread only."""

    def __init__(self, lens: LensModel, num_slots: int, context: int) -> None:
        """Reserve no memory yet: a layer's tensors are made with its first keys, which show their sizes."""
        super().__init__(layer_class_to_replicate=DynamicLayer)
        self.num_slots = num_slots
        self.context = context
        self._device = lens.device
        self._layer_types = lens.layer_types
        self._sliding_window = lens.sliding_window
        self._additive_dtype = lens.dtype if lens.takes_additive_mask else None
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}
        self._rows = slice(0, 0)
        self._length = 0
        self._write: tuple[Any, ...] = ()
        self._row_index = torch.arange(num_slots, device=self._device)
        self._columns = torch.arange(context, device=self._device)

    def view_prefill(self, slot: int, start: int, stop: int) -> dict[str, Any]:
        """Select tokens `[start, stop)` of one slot; return the model's mask and positions for them."""
        self._rows = slice(slot, slot + 1)
        self._length = stop
        self._write = (slice(slot, slot + 1), slice(None), slice(start, stop))
        positions = self._columns[start:stop]
        return self._inputs(positions[None], positions[None, :, None])

    def view_decode(self, positions: Int[Tensor, " rows"], max_position: int) -> dict[str, Any]:
        """Select one token of each slot `[0, rows)`; position `context` is the column that is never read."""
        num_rows = positions.shape[0]
        self._rows = slice(0, num_rows)
        self._length = min(-(-(max_position + 1) // _COLUMN_STEP) * _COLUMN_STEP, self.context)
        self._write = (self._row_index[:num_rows], slice(None), positions)
        return self._inputs(positions[:, None].clamp(max=self.context - 1), positions[:, None, None])

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        *args: Any,  # noqa: ANN401, ARG002 transformers' signature
        **kwargs: Any,  # noqa: ANN401, ARG002
    ) -> tuple[Tensor, Tensor]:
        """Write the new keys and values to the selected columns; return all that attention may read."""
        if layer_idx not in self._keys:
            _, heads, _, d_head = key_states.shape
            shape = (self.num_slots, heads, self.context + 1)
            self._keys[layer_idx] = key_states.new_zeros((*shape, d_head))
            self._values[layer_idx] = value_states.new_zeros((*shape, value_states.shape[-1]))
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        # A masked column has weight 0, but 0 times NaN is NaN: NaN of one request must not reach the next one.
        key_states = key_states.nan_to_num(0.0, 0.0, 0.0)
        value_states = value_states.nan_to_num(0.0, 0.0, 0.0)
        if isinstance(self._write[0], Tensor):
            keys[self._write] = key_states.squeeze(2)
            values[self._write] = value_states.squeeze(2)
        else:
            keys[self._write] = key_states
            values[self._write] = value_states
        return keys[self._rows, :, : self._length], values[self._rows, :, : self._length]

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002 transformers' signature
        """Return the number of selected columns."""
        return self._length

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        """Copy the first tokens of one slot to another."""
        for tensor in (*self._keys.values(), *self._values.values()):
            tensor[target, :, :num_tokens] = tensor[source, :, :num_tokens]

    def swap(self, first: int, second: int, num_tokens: int) -> None:
        """Exchange the first tokens of two slots."""
        for tensor in (*self._keys.values(), *self._values.values()):
            kept = tensor[first, :, :num_tokens].clone()
            tensor[first, :, :num_tokens] = tensor[second, :, :num_tokens]
            tensor[second, :, :num_tokens] = kept

    def _inputs(self, position_ids: Int[Tensor, "rows pos"], last_seen: Int[Tensor, "rows pos one"]) -> dict[str, Any]:
        columns = self._columns[: self._length]
        full = (columns <= last_seen)[:, None]
        masks: dict[str, Bool[Tensor, "rows one pos columns"] | Float[Tensor, "rows one pos columns"]]
        masks = {"full_attention": full}
        if self._sliding_window is not None:
            masks["sliding_attention"] = full & (columns > last_seen - self._sliding_window)[:, None]
        if self._additive_dtype is not None:
            least = torch.finfo(self._additive_dtype).min
            masks = {
                name: torch.zeros_like(mask, dtype=self._additive_dtype).masked_fill_(~mask, least)
                for name, mask in masks.items()
            }
        mask: Any
        if len(self._layer_types) > 1:
            mask = masks
        elif self._layer_types:
            mask = masks[self._layer_types[0]]
        else:
            mask = masks.get("sliding_attention", masks["full_attention"])
        return {"attention_mask": mask, "position_ids": position_ids, "past_key_values": self, "use_cache": True}
