"""A whole recorded render of two minutes with random weights: from open_video to the finished mp4, which is decoded."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Protocol

import torch

from packforcing_core.attention import Capability, attention_named
from packforcing_core.cache.config import PackForcing
from packforcing_core.cache.policies.packforcing import FULL_SPAN
from packforcing_core.errors import PackForcingError
from packforcing_core.geometry import GB
from packforcing_core.laboratory.bench.subject import (
    EARLY,
    FRAMES_PER_BLOCK,
    SEED,
    Scale,
    build_model,
    build_vae,
    random_high_res,
    random_text,
)
from packforcing_core.recipe.settings import Settings
from packforcing_core.render.render import Models, Place, Render, open_video
from packforcing_core.render.writing import Finished, WrittenBlock
from packforcing_core.text.script import Script
from packforcing_core.vae.streaming import StreamingDecoder
from packforcing_core.vae.wan_vae import WanVAE
from packforcing_core.video.process import has_encoder
from packforcing_core.video.reader import read_frames


class Lines(Protocol):
    """Where results go."""

    def put(self, what: str, value: object) -> None: ...


def film(lines: Lines, scale: Scale, device: torch.device, dtype: torch.dtype, seconds: float) -> None:
    """Renders `seconds` of video and puts its speed, memory and files into `lines`."""
    try:
        has_encoder("libx264")
    except (ImportError, PackForcingError) as error:
        lines.put("no video encoder here, so nothing was rendered", str(error)[:200])
        return
    attention = attention_named("auto", Capability.of(device, dtype, scale.config.head_dim))
    model = build_model(scale, device, dtype, attention)
    high_res = random_high_res(scale, model)
    vae = build_vae(scale, device, dtype)
    _calm(vae, scale, device)
    models = Models(model, vae, high_res=high_res, span=FULL_SPAN)
    settings = Settings(
        "random weights",
        seconds,
        scale.width,
        scale.height,
        seed=SEED,
        policy=PackForcing(mid_span=FULL_SPAN),
        frames_per_block=FRAMES_PER_BLOCK,
    )
    recipe = settings.recipe(None, FULL_SPAN)
    with TemporaryDirectory() as folder:
        place = Place(Path(folder) / "film.mp4", folder=Path(folder) / "render")
        began = time.perf_counter()
        render = open_video(models, settings, place, recipe, Script.of(random_text(scale)))
        lines.put("opening: fingerprints of all weights, folder, plan, s", round(time.perf_counter() - began, 2))
        lines.put(
            "planned: blocks, peak of the GPU, GB", (recipe.geometry.blocks, round(render.plan.peak_bytes / GB, 2))
        )
        _run(lines, render, device)


@torch.no_grad()
def _calm(vae: WanVAE, scale: Scale, device: torch.device) -> None:
    """Scales the last convolution so that frames deviate by about 2 of 255, which the encoder compresses to some 17 kB
    a frame, like a real video. Random weights make white noise, of which it makes 180 kB.
    """
    generator = torch.Generator().manual_seed(SEED)
    latents = torch.randn(1, 16, 1, scale.height // 8, scale.width // 8, generator=generator).to(device)
    for _ in range(2):  # The first time most of the frame is clamped.
        deviation = StreamingDecoder(vae).push(latents).std().item()
        vae.decoder.head[2].weight.mul_(4 / 255 / deviation)


def _run(lines: Lines, render: Render, device: torch.device) -> None:
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    began, written, held, path = time.perf_counter(), [], {}, None
    for event in render.events():
        if isinstance(event, WrittenBlock):
            written.append(time.perf_counter() - began)
            if event.block + 1 in (EARLY, 60, 115):
                held[event.block + 1] = torch.cuda.memory_allocated(device) if cuda else 0
                lines.put("allocated on the GPU at block, GB", {b: round(h / GB, 3) for b, h in held.items()})
        elif isinstance(event, Finished):
            path = event.path
    whole = time.perf_counter() - began
    assert path is not None
    blocks, fps = len(written), render.job.video_format.fps
    later = [b - a for a, b in zip(written[EARLY - 1 :], written[EARLY:], strict=False)]
    steps = [round(b - a, 2) for a, b in zip([0.0, *written], written, strict=False)]
    lines.put("seconds of each block", steps)
    lines.put("from the last block to the finished file, s", round(whole - written[-1], 2))
    lines.put("first frames in the encoder, s", round(written[0], 3))
    lines.put("whole render with its file, s", round(whole, 2))
    frames = sum(1 for _ in read_frames(path))
    lines.put("frames in the mp4, decoded", frames)
    lines.put("FPS, everything from the first step to the finished file", round(frames / whole, 2))
    if later:
        lines.put("FPS, median of blocks 22 on", round(4 * FRAMES_PER_BLOCK / median(later), 2))
        ends = [median(later[: len(later) // 4 or 1]), median(later[-(len(later) // 4 or 1) :])]
        lines.put("last quarter over first quarter of those blocks", round(ends[1] / ends[0], 3))
    if cuda:
        lines.put("peak of the GPU, GB", round(torch.cuda.max_memory_allocated(device) / GB, 2))
    size = sum(file.stat().st_size for file in render.folder.path.rglob("*") if file.is_file())
    growing = render.growing.stat().st_size if render.growing.exists() else 0
    lines.put("bytes on disk: mp4, render folder without video", (path.stat().st_size, size - growing))
    lines.put("blocks, fps of the file", (blocks, fps))
