"""The lazy stream of latent blocks that the sampler node passes to the node that consumes it."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import comfy.model_management

from ..packforcing_core.folder.folder import RenderFolder
from ..packforcing_core.folder.room import room_notes
from ..packforcing_core.recipe.plan import RenderPlan, plan_render
from ..packforcing_core.recipe.recipe import Recipe
from ..packforcing_core.render.parts import build_compression
from ..packforcing_core.render.recording import Replayed, recorded_events
from ..packforcing_core.sampler.denoising import BlockDone, Event
from ..packforcing_core.vae.tiny import TinyVAE
from ..packforcing_core.vae.wan_vae import WanVAE
from . import host


@dataclass(frozen=True, eq=False)
class LatentStream:
    """A render's recipe as a stream of latent blocks that can be iterated repeatedly. It holds no GPU memory.

    Finished blocks are in the render's `folder`, so a second consumer, or the same one with other encoder settings,
    does not sample again; an interrupted or crashed render resumes. `vae` is set if the policy compresses the past.
    `named`: the user named the render and may return to it. `cache_node` is the id of the KV Cache node that shows the
    drawing, if any.
    """

    model: Any  # A MODEL.
    recipe: Recipe
    folder: RenderFolder
    named: bool
    vae: object | None = None
    cache_node: str | None = None

    def plan(self, decoder_bytes: int = 0, *, decodes: bool = True) -> RenderPlan:
        """Memory of the render on the MODEL's device, in the MODEL's dtype. A policy that compresses also decodes; that
        is included if `decodes`.
        """
        own = self._decoder_bytes if self.vae is not None and decodes else 0
        return plan_render(
            host.wan_config(self.model), self.recipe, host.compute_dtype(self.model), max(own, decoder_bytes)
        )

    @cached_property
    def _decoder_bytes(self) -> int:
        return host.decoder_bytes(self.vae, self.recipe.geometry)

    def notes(self) -> tuple[str, ...]:
        """Notes for the user before sampling starts: how the folder was opened, and whether the disk has room."""
        return (*self.folder.notes, *room_notes(self.folder, self.plan().block_disk_bytes))

    def events(
        self,
        vae: Any = None,
        network: WanVAE | TinyVAE | None = None,
        *,
        first: int = 0,
        frugal: bool = False,
    ) -> Generator[Event | Replayed, None, None]:
        """Yields events from block `first` on; samples blocks that are not finished yet.

        A consumer that decodes passes its `vae` and the `network` made from it: memory is reserved for it, and blocks
        that sampling decodes anyway with the same VAE carry their frames. `frugal` uses as little memory as possible.
        Interruption by the user is checked after every model call. The caller holds the folder's lock, so there is one
        consumer at a time.
        """
        if not self.folder.missing_blocks():
            yield from map(self.folder.blocks.load, range(first, self.recipe.geometry.blocks))
            return
        shared = vae is self.vae and network is not None
        here = network is None or next(network.parameters()).device == vae.device
        planned = host.decoder_bytes(vae, self.recipe.geometry) if vae not in (None, self.vae) and here else 0
        plan = self.plan(planned, decodes=here or not shared)
        room = plan.peak_bytes - plan.weights_bytes
        if frugal:
            host.make_room()
            room *= 2  # ComfyUI then keeps more of the weights in system RAM.
        with host.loaded(self.model, room) as model:
            compression = None
            if self.recipe.partitions.bank is not None:
                own = network if shared and isinstance(network, WanVAE) else host.vae_network(self.vae)
                compression = build_compression(model, own, host.compressor_network(self.model))
            events = recorded_events(
                model, self.recipe, self.folder, compression, first=first, decoded=shared, frugal=frugal
            )
            for event in events:
                # Frames are passed on only if they come from the decoder with these very weights.
                yield replace(event, video=None) if isinstance(event, BlockDone) and not shared else event
                comfy.model_management.throw_exception_if_processing_interrupted()
