"""The lazy stream of latent blocks that travels from the sampler node to whoever consumes it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import comfy.model_management
from torch import Tensor

from ..packforcing_core.errors import PackForcingError
from ..packforcing_core.plan import RenderPlan, plan_render
from ..packforcing_core.render import Recipe, build_twins, latent_events
from ..packforcing_core.sampler.rollout import BlockDone, Event
from ..packforcing_core.vae.wan_vae import WanVAE
from . import host


@dataclass(frozen=True, eq=False)
class LatentStream:
    """A recipe that can be iterated again and again; it holds no GPU state.

    Finished blocks are remembered (half a megabyte each at 832x480), so a second consumer, or the same one with other
    encoder settings, does not sample again, and an interrupted render goes on where it stopped. `vae` is there where
    the policy compresses the past; `cache_node` is the node that draws the window, if there is one. `telemetry` has the
    lines that consumers note (see `watch`).
    """

    model: object
    context: Tensor
    recipe: Recipe
    vae: object | None = None
    cache_node: str | None = None
    finished: list[BlockDone] = field(default_factory=list)
    telemetry: list[dict] = field(default_factory=list)
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def plan(self, decoder_bytes: int = 0) -> RenderPlan:
        """What the render takes, in the MODEL's own dtype; a memory that compresses decodes too."""
        own = host.decoder_bytes(self.vae, self.recipe.geometry) if self.vae is not None else 0
        return plan_render(
            host.wan_config(self.model), self.recipe, self.model.model.get_dtype_inference(), max(own, decoder_bytes)
        )

    def events(self, vae: object | None = None, network: WanVAE | None = None) -> Iterator[Event]:
        """Blocks in order, sampling those that are not finished yet.

        A consumer that decodes gives its `vae` and the `network` made of it: there is room for it, and blocks that the
        sampling itself decodes with the same VAE bring their video along. Interruption by the user is noticed after
        every model call.
        """
        if not self._turn.acquire(blocking=False):
            raise PackForcingError("This stream is being sampled by another node already; let that one finish first.")
        try:
            if len(self.finished) >= self.recipe.geometry.blocks:
                yield from (replace(done, reused=True) for done in self.finished)
                return
            for event in self._sampled(vae, network):
                if isinstance(event, BlockDone):
                    if not event.reused:
                        self._remember(event)
                    if vae is not self.vae:
                        event = replace(event, video=None)
                yield event
                comfy.model_management.throw_exception_if_processing_interrupted()
        finally:
            self._turn.release()

    def _remember(self, done: BlockDone) -> None:
        if self.finished:  # Only behind the newest block may a rolling render go on.
            self.finished[-1] = replace(self.finished[-1], in_flight=None)
        self.finished.append(replace(done, video=None))

    def _sampled(self, vae: object | None, network: WanVAE | None) -> Iterator[Event]:
        plan = self.plan(host.decoder_bytes(vae, self.recipe.geometry) if vae is not None else 0)
        with host.loaded(self.model, plan.peak_bytes - plan.weights_bytes) as model:
            twins = None
            if self.recipe.partitions.bank:
                own = network if vae is self.vae and network is not None else host.vae_network(self.vae)
                twins = build_twins(model, own, host.compressor_network(self.model))
            yield from latent_events(model, self.context, self.recipe, tuple(self.finished), twins)
