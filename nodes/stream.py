"""The lazy stream of latent blocks that travels from the sampler node to whoever consumes it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import comfy.model_management
import torch
from torch import Tensor

from ..packforcing_core.plan import RenderPlan, plan_render
from ..packforcing_core.render import Recipe, latent_events
from ..packforcing_core.sampler.rollout import BlockDone, Event
from . import host


@dataclass(frozen=True, eq=False)
class LatentStream:
    """A recipe that can be iterated again and again; it holds no GPU state.

    Finished latents are remembered (half a megabyte a block at 832x480), so a second consumer, or the same one with
    other encoder settings, does not sample again, and an interrupted render goes on where it stopped.
    """

    model: object
    context: Tensor
    recipe: Recipe
    finished: list[Tensor] = field(default_factory=list)
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def plan(self, decoder_bytes: int = 0) -> RenderPlan:
        """What the render takes, in the MODEL's own dtype."""
        return plan_render(
            host.wan_config(self.model), self.recipe, self.model.model.get_dtype_inference(), decoder_bytes
        )

    def events(self, decoder_bytes: int = 0) -> Iterator[Event]:
        """Blocks in order, sampling those that are not finished yet; `decoder_bytes` is what the consumer needs beside.

        Interruption by the user is noticed after every model call.
        """
        with self._turn:
            if len(self.finished) >= self.recipe.geometry.blocks:
                yield from latent_events(None, self.context, self.recipe, self.finished)
                return
            plan = self.plan(decoder_bytes)
            with torch.inference_mode(), host.loaded(self.model, plan.peak_bytes - plan.weights_bytes) as model:
                for event in latent_events(model, self.context, self.recipe, tuple(self.finished)):
                    if isinstance(event, BlockDone) and not event.reused:
                        self.finished.append(event.latents)
                    yield event
                    comfy.model_management.throw_exception_if_processing_interrupted()
