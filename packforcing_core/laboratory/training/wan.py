"""A causal Wan for training: sharded over ranks or not, with activations recomputed or kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...history import History
from ...model.causal import CausalWan, Modulation, Seams, TextKV
from ...model.config import WanConfig
from ...model.network import Layer
from .parts import Repeatable
from .sharding import Result, inside


class TrainedWan(CausalWan):
    """`CausalWan` with every access to parameters inside the hooks of the module that owns them.

    With `recompute` (gradient checkpointing) the activations of the layers are recomputed in the backward pass instead
    of kept: those of whole layers if the history is `Repeatable`, otherwise those before and after its attention.
    """

    def __init__(self, net: nn.Module, config: WanConfig, *, recompute: bool = False, **options: Any):
        super().__init__(net, config, **options)
        self.recompute = recompute
        self._plain = self._before, self._after
        self._before, self._after = self._half(self._before), self._half(self._after)

    def patches(self, latents: Tensor) -> Tensor:
        parent = super().patches
        return inside(self.net, lambda _, latents: parent(latents), latents)

    def encode_text(self, context: Tensor) -> list[TextKV]:
        hidden = inside(self.net, lambda _, context: self._text_hidden(context), context)
        return [inside(layer, self._text_kv, hidden) for layer in self._net.blocks]

    def _modulation(self, timesteps: Tensor) -> Modulation:
        parent = super()._modulation
        return inside(self.net, lambda _, timesteps: parent(timesteps), timesteps)

    def _head(self, tokens: Tensor, modulation: Modulation, shape: torch.Size) -> Tensor:
        parent = super()._head
        return inside(self.net, lambda _, tokens, modulation: parent(tokens, modulation, shape), tokens, modulation)

    def _half(self, function: Callable[..., Result]) -> Callable[..., Result]:
        def half(layer: Layer, *arguments: Any) -> Result:
            if self._recomputes:
                return inside(layer, self._recomputed, function, *arguments)
            return inside(layer, function, *arguments)

        return half

    @property
    def _recomputes(self) -> bool:
        return self.recompute and torch.is_grad_enabled()

    @staticmethod
    def _recomputed(layer: Layer, function: Callable[..., Result], *arguments: Any) -> Result:
        return checkpoint(function, layer, *arguments, use_reentrant=False, preserve_rng_state=False)

    def _layer(
        self,
        index: int,
        layer: Layer,
        tokens: Tensor,
        modulation: Modulation,
        text: TextKV,
        history: History,
        seams: Seams,
    ) -> Tensor:
        if not (self._recomputes and isinstance(history, Repeatable)):
            return super()._layer(index, layer, tokens, modulation, text, history, seams)
        before, after = self._plain

        def whole(layer: Layer, tokens: Tensor, shifts: Tensor, text: TextKV) -> Tensor:
            q, k, v, shifts = before(layer, tokens, shifts, seams)
            return after(layer, tokens, history.attend(index, q, k, v), shifts, text, seams)

        return inside(layer, self._recomputed, whole, tokens, modulation.shifts, text)
