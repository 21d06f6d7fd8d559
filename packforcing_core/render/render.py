"""The entry point: settings in, events on the way, a finished file at the end.

for event in render(models, Settings("a lighthouse at dusk", seconds=120), "lighthouse.mp4"):
    ...  # StepDone, BlockDone, Replayed, WrittenBlock, Note, Finished
"""

from __future__ import annotations

import shutil
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..checkpoint.families import Family
from ..compressor.high_res import HighRes
from ..errors import PackForcingError
from ..folder.content import Content
from ..folder.fingerprint import fingerprint
from ..folder.folder import MODES, Mode, RenderFolder, open_render
from ..folder.manifest import Setting
from ..folder.room import room_notes
from ..folder.unnamed import open_unnamed
from ..geometry import VideoGeometry
from ..model.causal import CausalWan
from ..ranges import in_range
from ..recipe.plan import RenderPlan, plan_render
from ..recipe.recipe import Recipe
from ..recipe.settings import Encode, Settings
from ..sampler.denoising import Event
from ..sampler.start import Start
from ..text.script import Script
from ..vae.decode_bytes import vae_bytes
from ..vae.wan_vae import WanVAE
from ..video.format import VideoFormat
from .output import checked_output
from .parts import build_compression
from .recording import Replayed, recorded_events, wanted_manifest
from .writing import RenderEvent, VideoJob, growing_video, written_render


@dataclass(frozen=True, eq=False)
class Models:
    """The models of a render. `family` is how the checkpoint was trained (None: unknown). `encode` turns prompts into
    embeddings [1, L, text_dim]. `span` is the mid_span that the trained compressor `high_res` was trained with.
    `kernels` names the kernels, which affect the output bits as the weights do.
    """

    model: CausalWan
    vae: WanVAE
    encode: Encode | None = None
    high_res: HighRes | None = None
    span: float | None = None
    family: Family | None = None
    kernels: Mapping[str, Setting] = field(default_factory=dict)

    def identity(self, recipe: Recipe) -> dict[str, Setting]:
        """The dtype, and fingerprints of everything that affects what the models compute."""
        return {
            "model": fingerprint(self.model.net.state_dict()),
            "dtype": str(self.model.dtype),
            # If a longer video would need the VAE, it is part of the render from the start, so the render can be
            # extended.
            "VAE": fingerprint(self.vae.state_dict()) if recipe.compresses_sometime else None,
            "compressor": None if self.high_res is None else fingerprint(self.high_res.state_dict()),
            **self.kernels,
        }


@dataclass(frozen=True)
class Place:
    """Where a render goes: the video, its format, and the render's folder.

    Without a `folder` the render's folder is beside the video, found by the settings, and removed when the video is
    finished; modes extend and retake then have nothing to work on. `retake_from` is in seconds of the video.
    """

    path: Path
    video_format: VideoFormat | None = None
    blocks_per_segment: int = 4
    folder: Path | None = None
    mode: Mode = "resume"
    retake_from: float = 0.0

    def __post_init__(self):
        object.__setattr__(self, "path", checked_output(Path(self.path)))
        for name in ("blocks_per_segment", "retake_from"):
            in_range(name, getattr(self, name))
        if self.mode not in MODES:
            raise PackForcingError(f"mode is {self.mode!r:.60}; expected one of {', '.join(MODES)}.")
        if self.folder is None and self.mode in ("extend", "retake"):
            raise PackForcingError(f"Mode {self.mode} needs the folder of the render.")


@dataclass(frozen=True, eq=False)
class Render:
    """An opened render that has not started. `plan` gives its sizes, `folder.notes` what was found on disk."""

    models: Models
    recipe: Recipe
    folder: RenderFolder
    job: VideoJob
    plan: RenderPlan

    @property
    def growing(self) -> Path:
        """The video file while it is written."""
        return growing_video(self.folder, self.job)

    def events(self) -> Generator[RenderEvent, None, None]:
        """Runs the render; the last event is `Finished` with the file's path. After an error, opening it again
        resumes.
        """
        self.folder.ensure()
        with (
            torch.inference_mode(),
            closing(written_render(self.folder, self.recipe, self.job, self._blocks)) as events,
        ):
            yield from events
        if not self.job.keep_growing:
            shutil.rmtree(self.folder.path)

    def _blocks(self, *, first: int, frugal: bool) -> Generator[Event | Replayed, None, None]:
        models, compression = self.models, None
        if self.recipe.partitions.bank:
            compression = build_compression(models.model, models.vae, models.high_res)
        return recorded_events(models.model, self.recipe, self.folder, compression, first=first, frugal=frugal)


def open_video(models: Models, settings: Settings, place: Place, recipe: Recipe, script: Script) -> Render:
    """Opens the render of `recipe`, made from these settings and a start, with the text `script`."""
    content = Content(script, settings.prompt, recipe.start.latents)
    wanted = wanted_manifest(recipe, models.identity(recipe), content, models.model.device)
    block = recipe.block_at(place.retake_from)
    shape = recipe.geometry.block_shape
    if place.folder is None:
        folder = open_unnamed(place.path.absolute().parent, "packforcing", place.mode, wanted, content, shape)
    else:
        path = Path(place.folder).absolute()
        folder = open_render(path.parent, path.name, place.mode, wanted, content, shape, block)
    g, model = recipe.geometry, models.model
    job = VideoJob(
        place.path,
        place.video_format or VideoFormat(fps=g.fps),
        place.blocks_per_segment,
        models.vae,
        fingerprint(models.vae.state_dict()),
        keep_growing=place.folder is not None,
    )
    plan = plan_render(model.config, recipe, model.dtype, decoding_bytes(models.vae, g, model.device))
    folder = replace(folder, notes=(*folder.notes, *room_notes(folder, plan.block_disk_bytes)))
    return Render(models, recipe.begun_with(folder.content.start), folder, job, plan)


def decoding_bytes(vae: WanVAE, geometry: VideoGeometry, device: torch.device) -> int:
    """Bytes that the VAE needs on the model's `device` to decode; 0 if it is on another device."""
    weight = next(vae.parameters())
    if weight.device != device and weight.device.type == "cuda":
        return 0
    return vae_bytes(vae.config, geometry.height, geometry.width, geometry.frames_per_push, weight.dtype, weight.device)


def render(
    models: Models, settings: Settings, path: Path | str, *, start: Start | None = None, **place: Any
) -> Generator[RenderEvent, None, None]:
    """Renders `settings` to the mp4 `path` (an existing name gets a number); `place` takes the fields of `Place`.

    The same call resumes after a crash. Raises PackForcingError for invalid settings, before any work.
    """
    where = Place(Path(path), **place)
    recipe = settings.begun(settings.recipe(models.family, models.span), start)
    if models.encode is None:
        raise PackForcingError(
            "These models have no text encoder: set Models.encode, or open the render with a script."
        )
    yield from open_video(models, settings, where, recipe, settings.script(recipe, models.encode)).events()
