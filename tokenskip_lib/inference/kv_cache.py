"""Keys and values of earlier tokens, in buffers that grow, or in buffers of one size for compiled decoding."""

from typing import Any

import torch
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, StaticLayer

from tokenskip_lib.core.records import InputError


class GrowingLayer(DynamicLayer):
    """One block's keys and values in a buffer with spare room: a new token is written without copying the others."""

    room = 128  # positions that the buffer grows by

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.length, self.buffers = 0, (key_states[:, :, :0], value_states[:, :, :0])

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        begin, self.length = self.length, self.length + key_states.shape[-2]
        if self.length > self.buffers[0].shape[-2]:
            keys, values = self.buffers
            self.buffers = self._moved(keys, begin), self._moved(values, begin)
        self.keys, self.values = (buffer[:, :, : self.length] for buffer in self.buffers)
        self.keys[:, :, begin:] = key_states
        self.values[:, :, begin:] = value_states
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        keys, values = self.buffers
        self.buffers = self._moved(keys, self.length, indices), self._moved(values, self.length, indices)
        self.keys, self.values = (buffer[:, :, : self.length] for buffer in self.buffers)

    def _moved(self, buffer: torch.Tensor, filled: int, rows: torch.Tensor | None = None) -> torch.Tensor:
        kept = buffer[:, :, :filled] if rows is None else buffer[rows, :, :filled]
        moved = kept.new_empty(kept.shape[0], kept.shape[1], self.length + self.room, kept.shape[3])
        moved[:, :, :filled] = kept
        return moved


def new_cache(model: PreTrainedModel) -> Cache:
    """An empty cache for a model; blocks that attend to everything get a GrowingLayer."""
    cache = DynamicCache(config=model.config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def fixed_size(cache: Cache, room: int) -> Cache:
    """The same keys and values in tensors whose size stays, which a compiled step needs.

    Args:
        room: number of new tokens that must fit.

    Raises:
        InputError: a block of the model does not attend to everything.
    """
    layers: list[Any] = []
    for layer in cache.layers:
        if not isinstance(layer, GrowingLayer):
            raise InputError("target.compile: decoding is compiled for models whose blocks all attend to everything")
        size = -(-(layer.length + room) // layer.room) * layer.room  # few sizes, few compilations
        static = StaticLayer(max_cache_len=size)
        keys, values = (buffer[:, :, : layer.length] for buffer in layer.buffers)
        static.update(keys, values)
        layers.append(static)
    return Cache(layers=layers)
