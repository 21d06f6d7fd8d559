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
from ..packforcing_core.render.recording import Replayed, known_events, recorded_events
from ..packforcing_core.sampler.denoising import BlockDone, Event
from ..packforcing_core.vae.tiny import TinyVAE
from ..packforcing_core.vae.wan_vae import WanVAE
from . import host


@dataclass(frozen=True, eq=False)
class LatentStream:
    """A recipe that can be iterated again and again; it holds no GPU state.

    Finished blocks are in the render's `folder`, so a second consumer, or the same one with other encoder settings,
    does not sample again, and an interrupted or crashed render resumes where it stopped. `vae` is there where the
    policy compresses the past. `named`: the user gave the render a name, and may come back to it.
    `cache_node` is the node that draws the window, if there is one.
    """

    model: Any  # A MODEL.
    recipe: Recipe
    folder: RenderFolder
    named: bool
    vae: object | None = None
    cache_node: str | None = None

    def plan(self, decoder_bytes: int = 0, *, decodes: bool = True) -> RenderPlan:
        """What the render takes on the MODEL's device, in its own dtype; a policy that compresses decodes too, which
        counts if it `decodes` there.
        """
        own = self._decoder_bytes if self.vae is not None and decodes else 0
        return plan_render(
            host.wan_config(self.model), self.recipe, self.model.model.get_dtype_inference(), max(own, decoder_bytes)
        )

    @cached_property
    def _decoder_bytes(self) -> int:
        return host.decoder_bytes(self.vae, self.recipe.geometry)

    def notes(self) -> tuple[str, ...]:
        """What the user should know before the sampling: how the folder was opened, and whether the disk has room."""
        return (*self.folder.notes, *room_notes(self.folder, self.plan().block_disk_bytes))

    def events(
        self,
        vae: Any = None,
        network: WanVAE | TinyVAE | None = None,
        *,
        first: int = 0,
        frugal: bool = False,
    ) -> Generator[Event | Replayed, None, None]:
        """Blocks from `first` on, sampling those that are not finished yet.

        A consumer that decodes gives its `vae` and the `network` made of it: there is room for it, and blocks that the
        sampling itself decodes with the same VAE bring their video along. `frugal` takes as little memory as can be.
        Interruption by the user is noticed after every model call. The caller holds the folder's lock, which lets one
        consumer at a time in.
        """
        if not self.folder.missing_blocks():
            yield from known_events(self.folder, first, self.recipe.geometry.blocks)
            return
        shared = vae is self.vae and network is not None
        here = network is None or next(network.parameters()).device == vae.device
        planned = host.decoder_bytes(vae, self.recipe.geometry) if vae not in (None, self.vae) and here else 0
        plan = self.plan(planned, decodes=here or not shared)
        room = plan.peak_bytes - plan.weights_bytes
        if frugal:
            host.make_room()
            room *= 2  # Then ComfyUI leaves more of the weights in system RAM.
        with host.loaded(self.model, room) as model:
            compression = None
            if self.recipe.partitions.bank is not None:
                own = network if shared and isinstance(network, WanVAE) else host.vae_network(self.vae)
                compression = build_compression(model, own, host.compressor_network(self.model))
            events = recorded_events(
                model, self.recipe, self.folder, compression, first=first, decoded=shared, frugal=frugal
            )
            for event in events:
                # Only the decoder of these very weights makes the video that is wanted.
                yield replace(event, video=None) if isinstance(event, BlockDone) and not shared else event
                comfy.model_management.throw_exception_if_processing_interrupted()
