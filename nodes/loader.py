"""PackForcing Model Loader: any Wan2.1 autoregressive checkpoint as a native MODEL."""

from __future__ import annotations

import json
import os

import comfy.sd
import folder_paths
import torch
from comfy_api.v0_0_2 import io

from ..packforcing_core import devices
from ..packforcing_core.checkpoint.families import FAMILIES, Family, by_name
from ..packforcing_core.checkpoint.load import Checkpoint, inspect, read_checkpoint
from ..packforcing_core.compressor.weights import LoadedCompressor, load_compressor
from ..packforcing_core.errors import PackForcingError
from . import host
from .sockets import CATEGORY
from .tell import say

FOLDERS = ("diffusion_models", "checkpoints")
COMPRESSOR_FOLDER = "packforcing_compressors"
NO_COMPRESSOR = "none"
DTYPES = {
    "default": None,
    **devices.DTYPES,
    "fp8_e4m3fn": torch.float8_e4m3fn,
}


folder_paths.add_model_folder_path(COMPRESSOR_FOLDER, os.path.join(folder_paths.models_dir, COMPRESSOR_FOLDER))


def checkpoint_names() -> list[str]:
    """The files of both model folders; a name in both is listed once."""
    return list(dict.fromkeys(name for folder in FOLDERS for name in folder_paths.get_filename_list(folder)))


def checkpoint_path(name: str) -> str:
    for folder in FOLDERS:
        path = folder_paths.get_full_path(folder, name)
        if path is not None:
            return path
    raise PackForcingError(
        f"Got checkpoint {name!r}, which is not in models/{' or models/'.join(FOLDERS)}: "
        "put the file there and press R, or choose another one."
    )


class ModelLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PackForcingModelLoader",
            display_name="PackForcing Model Loader",
            category=CATEGORY,
            description="Loads an autoregressive (block-by-block) Wan2.1 checkpoint (Self-Forcing, "
            "Causal-Forcing, LongLive, CausVid, Krea Realtime ...), in any of its file layouts, as "
            "an ordinary ComfyUI MODEL. LoRA nodes go after it.",
            search_aliases=["self-forcing", "causal forcing", "longlive", "autoregressive video", "load wan causal"],
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=checkpoint_names(),
                    tooltip="A .safetensors or .pt file in models/diffusion_models or models/checkpoints.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(DTYPES),
                    default="default",
                    tooltip="Precision of the weights. default: ComfyUI's choice for your GPU (bf16 on most). "
                    "fp8_e4m3fn takes half the VRAM of bf16, at some loss.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "preset",
                    options=["auto", *FAMILIES],
                    default="auto",
                    tooltip="How the checkpoint was trained (block length, steps, shift, window). auto: by its file "
                    "name, metadata and keys.",
                ),
                io.Combo.Input(
                    "compressor",
                    options=[NO_COMPRESSOR, *folder_paths.get_filename_list(COMPRESSOR_FOLDER)],
                    default=NO_COMPRESSOR,
                    optional=True,
                    tooltip=f"Trained compressor weights in models/{COMPRESSOR_FOLDER}, for the PackForcing policy. "
                    "none: zero-shot, with any checkpoint.",
                    advanced=True,
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="An ordinary ComfyUI MODEL: LoRA and attention nodes go after the loader.")
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, checkpoint: str | None = None) -> bool | str:
        """Reads tensor names and shapes only, so an unsuitable file is refused before the prompt is queued."""
        if checkpoint is None:
            return True
        try:
            found = inspect(checkpoint_path(checkpoint))
        except PackForcingError as error:
            return str(error)
        if not found.usable_by_host:
            return f"{found.path.name} is {found.title}. {' '.join((*found.problems, found.advice))}"
        return True

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str | None = None, compressor: str = NO_COMPRESSOR, **_) -> str:
        """A file that was replaced under the same name is loaded again."""
        paths = [checkpoint_path(checkpoint)] if checkpoint else []
        if compressor not in (None, NO_COMPRESSOR):
            paths.append(folder_paths.get_full_path_or_raise(COMPRESSOR_FOLDER, compressor))
        return " ".join(f"{status.st_size}/{status.st_mtime_ns}" for status in map(os.stat, paths))

    @classmethod
    def execute(cls, checkpoint: str, weight_dtype: str, preset: str, compressor: str = NO_COMPRESSOR) -> io.NodeOutput:
        read = read_checkpoint(checkpoint_path(checkpoint), keep_quantised=True)
        family = read.family if preset == "auto" else by_name(preset)
        model = build_model(read, DTYPES[weight_dtype])
        host.note_family(model, family)
        if compressor != NO_COMPRESSOR:
            host.attach_compressor(model, read_compressor(compressor, read))
        text = "\n".join((_summary(read, family), *(f"Warning: {warning}" for warning in _warnings(read, preset))))
        say(cls.hidden.unique_id, text)
        return io.NodeOutput(model, ui={"text": (text,)})


def build_model(read: Checkpoint, dtype: torch.dtype | None):
    """A native MODEL with the checkpoint's weights, of the class that ComfyUI's own autoregressive nodes expect."""
    texts = {"text_dim": read.config.text_dim, "text_len": read.config.text_len}
    marked = {**read.metadata, "config": json.dumps({"transformer": {"causal_ar": True, **texts}})}
    options = {} if dtype is None else {"dtype": dtype}
    model = comfy.sd.load_diffusion_model_state_dict(dict(read.state_dict), options, metadata=marked)
    if model is None:
        raise PackForcingError(
            f"ComfyUI does not recognise {read.path.name} as a Wan model, although its weight names match. "
            "Update ComfyUI."
        )
    return model


def read_compressor(name: str, read: Checkpoint) -> LoadedCompressor:
    """The compressor file `name`. Raises PackForcingError if it was made for another model. The sampler checks the
    block length, which is chosen there.
    """
    path = folder_paths.get_full_path_or_raise(COMPRESSOR_FOLDER, name)
    return load_compressor(path, read.config, None, ops=host.HOST_OPS, base=read.state_dict)


def _summary(read: Checkpoint, family: Family | None) -> str:
    if family is None:
        return f"{read.path.name}: preset unknown, sampled like Self-Forcing"
    return f"{read.path.name}: {family.title}, blocks of {family.frames_per_block} latent frames"


def _warnings(read: Checkpoint, preset: str) -> tuple[str, ...]:
    return read.warnings if preset == "auto" else ()
