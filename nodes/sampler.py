"""PackForcing Sampler: MODEL and prompt -> a lazy stream of latent blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.v0_0_2 import io

from ..packforcing_core.cache.config import PackForcing, Policy
from ..packforcing_core.cache.policy import AUTO, TRAINED_FRAMES
from ..packforcing_core.checkpoint.families import (
    DEFAULT_FAMILY,
    Family,
    any_size,
    choice_warnings,
    with_overrides,
)
from ..packforcing_core.errors import PackForcingError
from ..packforcing_core.folder.content import Content
from ..packforcing_core.folder.files import checked_name
from ..packforcing_core.folder.folder import Mode, RenderFolder, open_render
from ..packforcing_core.folder.listing import newest_note, others_note
from ..packforcing_core.folder.manifest import Manifest
from ..packforcing_core.folder.unnamed import open_unnamed
from ..packforcing_core.geometry import SIZE_MULTIPLE, VideoGeometry, block_count
from ..packforcing_core.recipe.recipe import Recipe
from ..packforcing_core.recipe.settings import Settings
from ..packforcing_core.render.recording import wanted_manifest
from ..packforcing_core.sampler.denoising import Denoising
from ..packforcing_core.sampler.rollout import require_followable
from . import host
from .conditioning import timed_script
from .loras import honoured
from .sampler_inputs import OUTPUT_FOLDER, folder_inputs, length_and_size, length_in_frames, preset_and_overrides
from .sockets import CATEGORY, CacheSocket, StartSocket, StreamSocket
from .start import StartFrom
from .stream import LatentStream
from .tell import say


class Sampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PackForcingSampler",
            display_name="PackForcing Sampler",
            category=CATEGORY,
            description="Generates a video autoregressively, block by block, in VRAM that does not grow with its "
            "length. The output is a stream: the node that consumes it does the sampling, so a video "
            "of any length goes straight to disk.",
            search_aliases=["long video", "self-forcing sampler", "autoregressive sampler", "causal sampler"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="An autoregressive (block-by-block) Wan2.1 T2V model, with or without LoRA."
                ),
                io.Conditioning.Input(
                    "positive",
                    tooltip="The prompt, from CLIP Text Encode with the umT5 text encoder, or several over time from "
                    "PackForcing Timed Prompts.",
                ),
                CacheSocket.Input(
                    "kv_cache",
                    optional=True,
                    tooltip="Which past frames a block attends to. If not connected: what the checkpoint was trained "
                    "with.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="The Wan2.1 VAE. Needed by the PackForcing policy and by Start Image / Video.",
                ),
                *length_and_size(),
                *preset_and_overrides(),
                *folder_inputs(),
                length_in_frames(),
                StartSocket.Input(
                    "start",
                    optional=True,
                    tooltip="An image or video to begin from (PackForcing Start Image / Video). If not connected: from "
                    "the prompt alone.",
                ),
            ],
            outputs=[
                StreamSocket.Output(
                    display_name="stream",
                    tooltip="For Streaming VAE Decode or Stream to Latent, which do the sampling.",
                )
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    def validate_inputs(
        cls,
        width: int | None = None,
        height: int | None = None,
        timesteps: str | None = None,
        render_name: str | None = None,
    ) -> bool | str:
        """Checks what is known before the prompt is queued. A linked input is None here and is checked in execute.

        Only what ComfyUI cannot check by range is named here: of a refused node it marks every input that is named.
        """
        try:
            VideoGeometry.from_seconds(
                1.0,
                width=SIZE_MULTIPLE if width is None else width,
                height=SIZE_MULTIPLE if height is None else height,
                fps=16.0,
                frames_per_block=1,
            )
            Denoising.of_family(with_overrides(DEFAULT_FAMILY, denoising_steps=parse_steps(timesteps or "")))
            if render_name:
                checked_name(render_name)
        except PackForcingError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        model,
        positive,
        kv_cache: Policy | None = None,
        vae=None,
        render_mode: Mode = "resume",
        render_name: str = "",
        retake_from: float = 0.0,
        start: StartFrom | None = None,
        **widgets,
    ) -> io.NodeOutput:
        config = host.wan_config(model)
        model, notes = honoured(model, cls.hidden)
        trained = host.trained_family(model)
        settings = settings_of(widgets, kv_cache)
        patched_shift = host.patched_shift(model)  # It also refuses what else a node set for the MODEL's sampling.
        if settings.shift is None:
            settings = replace(settings, shift=patched_shift)
        info = host.compressor_info(model)
        recipe = begun(settings, settings.recipe(trained, info.mid_span if info else None), start, vae)
        geometry, family = recipe.geometry, settings.family(trained)
        compresses = recipe.partitions.bank is not None
        if compresses:
            _require_compressor_parts(model, vae, family)
        cache_node = _linked_node(cls.hidden, "kv_cache")
        text = timed_script(positive, config, geometry, recipe.left_out_blocks)
        require_followable(text.script, recipe.denoising)
        # If a longer video would need the VAE, it is part of the settings from the start, so the render can be
        # extended.
        identity = host.model_identity(model, vae if recipe.compresses_sometime else None)
        content = Content(text.script, start=recipe.start.latents)
        wanted = wanted_manifest(recipe, identity, content, model.load_device)
        folder = open_folder(render_name, render_mode, wanted, content, recipe, recipe.block_at(retake_from))
        recipe = recipe.begun_with(folder.content.start)
        stream = LatentStream(model, recipe, folder, bool(render_name), vae if compresses else None, cache_node)
        plan = stream.plan()
        memory = plan.describe_memory()
        # Not how many are finished: ComfyUI shows this text again when it resumes the render.
        known = f"render {folder.path.name}, {block_count(geometry.blocks)}"
        warnings = (*notes, *stream.notes(), *_warnings(trained, family, settings))
        if retake_from and render_mode != "retake":
            warnings += ("Note: retake_from is used by render_mode retake only",)
        adapted = start.adaptations(geometry, any_size(trained)) if start else ()
        warnings += (*_compressor_warnings(model, recipe), *adapted)
        prompts = text.describe(geometry)
        others = others_note(folder.path.parent, folder.path)
        # Warnings first: the node shows nine lines, the rest has to be scrolled to.
        first = (recipe.describe_length(settings.seconds), *warnings)
        lines = (*first, *prompts, plan.describe(length=False), memory, known, *others)
        of_cache = tuple(_compressor_note(model, recipe)) if cache_node is not None else ()
        elsewhere = of_cache if cache_node is None else (*of_cache, memory)  # The KV Cache node draws the memory.
        say(cls.hidden.unique_id, "\n".join(line for line in lines if line not in elsewhere))
        if cache_node is not None:
            say(cache_node, "\n".join(of_cache))
        return io.NodeOutput(stream, ui={"text": ("\n".join(lines),)})


def settings_of(widgets: Mapping[str, Any], policy: Policy | None) -> Settings:
    """The settings from the sampler's widgets; 0, "" and auto all mean automatic."""
    return Settings(
        **{name: widgets[name] for name in ("seconds", "width", "height", "fps", "seed")},
        policy=policy,
        frames=widgets.get("frames") or None,
        preset=None if widgets["preset"] == "auto" else widgets["preset"],
        frames_per_block=widgets["frames_per_block"] or None,
        timesteps=parse_steps(str(widgets["timesteps"])),
        shift=widgets["shift"] or None,
    )


def begun(settings: Settings, recipe: Recipe, start: StartFrom | None, vae) -> Recipe:
    """The recipe with its start image or video, encoded."""
    if start is None:
        return recipe
    network = None
    if start.needs_vae:
        if vae is None:
            raise PackForcingError(
                "An image or video to begin from is encoded first: connect the Wan2.1 VAE to the vae input of the "
                "sampler."
            )
        host.check_vae(vae)
        host.make_room_for(vae, recipe.geometry)
        network = host.vae_network(vae)
    return settings.begun(recipe, start.build(network, recipe.geometry))


def open_folder(
    render: str, mode: Mode, wanted: Manifest, content: Content, recipe: Recipe, retake_block: int
) -> RenderFolder:
    """Opens the render's folder in ComfyUI's output folder. Without a name it is found by the settings that decide its
    blocks.
    """
    root, shape = Path(folder_paths.get_output_directory()) / OUTPUT_FOLDER, recipe.geometry.block_shape
    if not render and mode in ("extend", "retake"):
        asked = f"To {mode} a render, enter its name in the widget `render_name`."
        raise PackForcingError(f"{asked} {newest_note(root)}")
    if not render:
        return open_unnamed(root, "auto", mode, wanted, content, shape)
    return open_render(root, render, mode, wanted, content, shape, retake_block)


def _require_compressor_parts(model, vae, family: Family) -> None:
    """Raises PackForcingError if a policy that compresses the past has no VAE, or a compressor that does not fit."""
    if vae is None:
        raise PackForcingError(
            "This KV cache policy compresses past blocks from their decoded frames, so the sampler needs the VAE. "
            "Connect the Wan2.1 VAE to its vae input, or choose a policy without a bank (top_k_blocks 0)."
        )
    host.check_vae(vae)
    info = host.compressor_info(model)
    if info is not None and info.frames_per_block != family.frames_per_block:
        raise PackForcingError(
            f"The compressor was trained with blocks of {info.frames_per_block} latent frames, but frames_per_block is "
            f"{family.frames_per_block}. Set it to {info.frames_per_block} or load the checkpoint without a compressor."
        )


def _linked_node(hidden, name: str) -> str | None:
    """The id of the node linked to the input `name` of this node."""
    # The user's prompt does not list nodes that loops and groups expand to at run time.
    link = (hidden.prompt or {}).get(hidden.unique_id, {}).get("inputs", {}).get(name)
    return link[0] if isinstance(link, list) else None


def _compressor_warnings(model, recipe: Recipe) -> Iterator[str]:
    info, bank, policy = host.compressor_info(model), recipe.unlimited_partitions.bank, recipe.policy
    if info is not None and bank is None:
        yield f"Note: the MODEL carries a trained compressor, which the policy '{policy.title}' does not use."
    if info is None and isinstance(policy, PackForcing) and bank and bank.mid_span > _fitted_span(recipe, policy):
        yield (
            f"Warning: with mid_span {policy.mid_span:g} the frames in view take up more than the "
            f"{TRAINED_FRAMES} positions of the model's training. That needs a trained compressor, and the MODEL "
            "carries none: expect jumps in the video. Set mid_span to -1."
        )
    yield from _compressor_note(model, recipe)


def _fitted_span(recipe: Recipe, policy: PackForcing) -> float:
    """The `mid_span` with which the frames in view take up the positions of the model's training."""
    fitted = replace(recipe, policy=replace(policy, mid_span=AUTO)).unlimited_partitions.bank
    return fitted.mid_span if fitted else 0.0


def _compressor_note(model, recipe: Recipe) -> Iterator[str]:
    """A note if the policy could use a trained compressor and the MODEL carries none."""
    if recipe.unlimited_partitions.bank is not None and host.compressor_info(model) is None:
        yield (
            "Note: this MODEL has no trained compressor, so PackForcing runs zero-shot: what has left the frame is not "
            "recalled. The help of PackForcing Model Loader says how to train one."
        )


def parse_steps(text: str) -> tuple[float, ...] | None:
    """ "1000, 750" -> (1000.0, 750.0); None for an empty text. PackForcingError for what is no list of numbers."""
    if not text.strip():
        return None
    try:
        return tuple(float(step) for step in text.replace(",", " ").split())
    except ValueError:
        raise PackForcingError(f"Got timesteps {text[:100]!r}; expected numbers such as 1000, 750, 500, 250.") from None


def _warnings(trained: Family | None, family: Family, settings: Settings) -> list[str]:
    if trained is None and settings.preset is None:
        return [
            "Warning: nothing says how this checkpoint was trained, so it is sampled like Self-Forcing. If it is a "
            "bidirectional Wan2.1 the video falls apart. Use the PackForcing Model Loader, or choose a preset."
        ]
    return [f"Warning: {warning}" for warning in choice_warnings(trained, family, (settings.width, settings.height))]
