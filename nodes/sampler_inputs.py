"""The widgets of the sampler node: length and size, how the checkpoint is sampled, and the render's folder."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

from ..packforcing_core.checkpoint.families import FAMILIES
from ..packforcing_core.folder.folder import MODES
from ..packforcing_core.geometry import MAX_FPS, MAX_SECONDS, MAX_SIDE, SIZE_MULTIPLE

OUTPUT_FOLDER = "packforcing"
"""Where render folders are, below ComfyUI's output folder."""


def length_and_size() -> list[io.Input]:
    return [
        io.Float.Input(
            "seconds",
            default=30.0,
            min=0.1,
            max=MAX_SECONDS,
            step=0.1,
            tooltip="Length of the video, rounded to whole blocks (12 frames each for most checkpoints). "
            "Render time grows with it; VRAM does not, unless the policy keeps the full history. Or set frames.",
        ),
        io.Int.Input(
            "width",
            default=832,
            min=SIZE_MULTIPLE,
            max=MAX_SIDE,
            step=SIZE_MULTIPLE,
            tooltip="Pixels, in steps of 16. Most checkpoints were trained at 832x480; the cache grows with the area.",
        ),
        io.Int.Input(
            "height",
            default=480,
            min=SIZE_MULTIPLE,
            max=MAX_SIDE,
            step=SIZE_MULTIPLE,
            tooltip="Pixels, in steps of 16. Most checkpoints were trained at 832x480; the cache grows with the area.",
        ),
        io.Float.Input(
            "fps",
            default=16.0,
            min=1.0,
            max=MAX_FPS,
            step=0.01,
            tooltip="Frames per second of the video. Wan was trained at 16: another number plays the same motion "
            "faster or slower.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=io.ControlAfterGenerate.fixed,
            tooltip="The same seed gives the same video, whatever its length.",
        ),
    ]


def folder_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "render_mode",
            options=list(MODES),
            default="resume",
            optional=True,
            tooltip="resume: continue the render of this name where it stopped, or start it. new: start over; the "
            "existing render is renamed to NAME.1. extend: make it as long as `seconds` says now. retake: keep what "
            "comes before retake_from, and render the rest again with this seed and prompt.",
        ),
        io.String.Input(
            "render_name",
            default="",
            optional=True,
            tooltip=f"Name of the render's folder in output/{OUTPUT_FOLDER}, which holds everything needed to resume. "
            "Empty: found by its settings, so queuing the same again resumes it, even after a crash; a longer video "
            "begins with what was rendered of a shorter one.",
        ),
        io.Float.Input(
            "retake_from",
            default=0.0,
            min=0.0,
            max=36000.0,
            step=0.1,
            optional=True,
            tooltip="For render_mode retake, in seconds: the block that shows this moment is the first one rendered "
            "again.",
        ),
    ]


def preset_and_overrides() -> list[io.Input]:
    return [
        io.Combo.Input(
            "preset",
            options=["auto", *FAMILIES],
            default="auto",
            tooltip="How the checkpoint was trained. auto: what the PackForcing Model Loader found, else Self-Forcing.",
            advanced=True,
        ),
        io.Int.Input(
            "frames_per_block",
            default=0,
            min=0,
            max=64,
            tooltip="Latent frames denoised together; 0 takes the preset's. Must be what the checkpoint was "
            "trained with, or motion suffers.",
            advanced=True,
        ),
        io.String.Input(
            "timesteps",
            default="",
            tooltip="Timesteps from noise (1000) to clean, for example 1000, 750, 500, 250: each is one "
            "forward pass per block. Empty takes the preset's, which the checkpoint was distilled "
            "for.",
            advanced=True,
        ),
        io.Float.Input(
            "shift",
            default=0.0,
            min=0.0,
            max=100.0,
            step=0.01,
            tooltip="Time shift of the schedule: higher spends the steps on noisier levels. 0 takes the preset's "
            "(5 for most).",
            advanced=True,
        ),
    ]


def length_in_frames() -> io.Input:
    return io.Int.Input(
        "frames",
        default=0,
        min=0,
        max=int(MAX_SECONDS * MAX_FPS),
        optional=True,
        tooltip="Length in frames, instead of seconds. 0: seconds counts.",
        advanced=True,
    )
