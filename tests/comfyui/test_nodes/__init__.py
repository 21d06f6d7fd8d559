"""Nodes that only the tests' server has: a CONDITIONING without the 11 GB text encoder; waiting and failing."""

from __future__ import annotations

import os
import time
import types
import zlib
from dataclasses import replace

import comfy.lora
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy_api.v0_0_2 import ComfyExtension, InputImpl, io, ui
from comfy_execution.graph_utils import GraphBuilder
from PIL import Image

from .attached import ATTACHED

CONTEXT_TOKENS, CONTEXT_WIDTH = 512, 4096
if os.environ.get("PACKFORCING_TEST_BF16"):  # For drawings of plans; nothing is sampled then.
    comfy.model_management.unet_manual_cast = lambda *_, **__: None


class PackForcingTestConditioning(io.ComfyNode):
    """What CLIPTextEncode gives for Wan: [1, 512, 4096], zeros after the prompt's tokens."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PackForcingTestConditioning",
            category="PackForcing/tests",
            inputs=[
                io.Int.Input("seed", default=0, min=0, max=2**31),
                io.Int.Input("tokens", default=12, min=1, max=CONTEXT_TOKENS),
                io.Int.Input("width", default=CONTEXT_WIDTH, min=1, max=CONTEXT_WIDTH),
            ],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(cls, seed: int, tokens: int, width: int) -> io.NodeOutput:
        context = torch.zeros(1, CONTEXT_TOKENS, width)
        generator = torch.Generator().manual_seed(seed)
        context[:, :tokens] = torch.randn(1, tokens, width, generator=generator) * 0.1
        return io.NodeOutput([[context, {}]])


class WordVectors:
    """Stands in for a CLIP: each word is a seeded random vector, zeros follow the last."""

    def tokenize(self, text: str) -> list[str]:
        return text.lower().split()[:CONTEXT_TOKENS]

    def encode_from_tokens_scheduled(self, words: list[str]) -> list:
        context = torch.zeros(1, CONTEXT_TOKENS, CONTEXT_WIDTH)
        for place, word in enumerate(words):
            generator = torch.Generator().manual_seed(zlib.crc32(word.encode()))
            context[0, place] = torch.randn(CONTEXT_WIDTH, generator=generator) * 0.1
        return [[context, {}]]


class PackForcingTestClip(io.ComfyNode):
    """What CLIPLoader gives to nodes that encode text: the real encoder has one size, 11 GB."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PackForcingTestClip", category="PackForcing/tests", inputs=[], outputs=[io.Clip.Output()]
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(WordVectors())


class Dequantising(comfy.ops.manual_cast):
    """Operations as GGUF loaders bring them: a Linear holds codes, makes its weights when it is called, and gives meta
    tensors for a state dict.
    """

    class Linear(comfy.ops.manual_cast.Linear):
        scale: torch.Tensor | None = None
        lora: tuple[list, str] | None = None
        dequant_dtype: torch.dtype | None = None

        def _load_from_state_dict(self, state_dict: dict, prefix: str, *rest) -> None:
            self.scale = state_dict.pop(f"{prefix}row_scale", None)
            if self.scale is None:
                super()._load_from_state_dict(state_dict, prefix, *rest)
                return
            self.weight = torch.nn.Parameter(state_dict[f"{prefix}weight"], requires_grad=False)
            self.bias = torch.nn.Parameter(state_dict[f"{prefix}bias"], requires_grad=False)

        def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
            super()._save_to_state_dict(destination, prefix, keep_vars)
            if self.scale is not None:
                destination[f"{prefix}weight"] = torch.zeros_like(self.weight, device="meta")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.scale is None:
                return super().forward(x)
            how = self.dequant_dtype or x.dtype
            weight = (self.weight.to(how) * self.scale.to(how)).to(x)
            if self.lora:
                weight = comfy.lora.calculate_weight(self.lora[0], weight, self.lora[1])
            return torch.nn.functional.linear(x, weight, self.bias.to(x))


class KeepsCodes(comfy.model_patcher.ModelPatcher):
    """Leaves codes as they are: a LoRA's patches go to the layer, which adds them when it is called."""

    def patch_weight_to_device(self, key: str, *arguments, **settings):
        layer = comfy.utils.get_attr(self.model, key.rpartition(".")[0])
        if getattr(layer, "scale", None) is None or not key.endswith("weight"):
            return super().patch_weight_to_device(key, *arguments, **settings)
        layer.lora = (self.patches[key], key) if key in self.patches else None
        return None

    def unpatch_model(self, *arguments, **settings):
        for layer in self.model.modules():
            if isinstance(layer, Dequantising.Linear):
                layer.lora = None
        return super().unpatch_model(*arguments, **settings)


class PackForcingTestQuantisedLoader(io.ComfyNode):
    """Loads a file with 8-bit codes in the layers' Linears, under operations of its own."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PackForcingTestQuantisedLoader",
            category="PackForcing/tests",
            inputs=[io.String.Input("file"), io.Boolean.Input("half", default=False, optional=True)],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, file: str, half: bool = False) -> io.NodeOutput:
        path = folder_paths.get_full_path_or_raise("diffusion_models", file)
        tensors, metadata = comfy.utils.load_torch_file(path, return_metadata=True)
        Dequantising.Linear.dequant_dtype = torch.float16 if half else None  # Of all layers at once, as GGUF's.
        options = {"custom_operations": Dequantising, "dtype": torch.float32}
        model = comfy.sd.load_diffusion_model_state_dict(tensors, options, metadata=metadata)
        held = {p.dtype for p in model.model.diffusion_model.blocks[0].ffn.parameters()}
        if torch.int8 not in held:
            raise ValueError(f"The codes were not kept: {held}")
        model.__class__ = KeepsCodes
        return io.NodeOutput(model)


class PackForcingTestReplace(io.ComfyNode):
    """Replaces a part of every layer by `add_object_patch`: `cross_attn` as NAG does, or another."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PackForcingTestReplace",
            category="PackForcing/tests",
            inputs=[io.Model.Input("model"), io.String.Input("part"), io.Float.Input("strength", default=1.0)],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, part: str, strength: float) -> io.NodeOutput:
        model = model.clone()
        for number, layer in enumerate(model.get_model_object("diffusion_model").blocks):
            key = f"diffusion_model.blocks.{number}.{part}.forward"
            model.add_object_patch(key, _weakened(getattr(layer, part), strength))
        return io.NodeOutput(model)


class PackForcingTestHold(io.ComfyNode):
    """Makes the sampling wait as long as there is a file of this name in the output folder.

    The file holds how many calls of the model are let through before.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PackForcingTestHold",
            category="PackForcing/tests",
            inputs=[io.Model.Input("model"), io.String.Input("file")],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, file: str) -> io.NodeOutput:
        model = model.clone()
        path = os.path.join(folder_paths.get_output_directory(), file)
        part = model.get_model_object("diffusion_model").blocks[0].cross_attn
        model.add_object_patch("diffusion_model.blocks.0.cross_attn.forward", _held(part, path))
        return io.NodeOutput(model)


class Hold:
    """Counts the calls since the file at `path` was made."""

    def __init__(self, path: str) -> None:
        self.path, self.made, self.calls = path, None, 0

    def wait(self) -> None:
        while (left := self._left()) is not None and left <= 0:
            time.sleep(0.02)
        self.calls += 1

    def _left(self) -> int | None:
        try:
            made = os.stat(self.path).st_mtime_ns
            with open(self.path, encoding="ascii") as file:
                allowed = int(file.read())
        except FileNotFoundError:
            return None
        if made != self.made:
            self.made, self.calls = made, 0
        return allowed - self.calls


def _held(part, path: str):
    own, hold = type(part).forward, Hold(path)

    def forward(self, *arguments, **settings):
        hold.wait()
        return own(self, *arguments, **settings)

    return types.MethodType(forward, part)


def _weakened(part, strength: float):
    own = type(part).forward

    def forward(self, *arguments, **settings):
        return strength * own(self, *arguments, **settings)

    return types.MethodType(forward, part)


class PackForcingTestCount(io.ComfyNode):
    """Counts to `steps` under ComfyUI's own progress bar, with a preview a step, and shows a line of text."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PackForcingTestCount",
            category="PackForcing/tests",
            inputs=[
                io.Int.Input("steps", default=3, min=1, max=10_000),
                io.Float.Input("pause", default=0.0, min=0.0, max=10.0),
                io.Boolean.Input("fail", default=False),
            ],
            outputs=[io.Int.Output()],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, steps: int, pause: float, fail: bool) -> io.NodeOutput:
        bar = comfy.utils.ProgressBar(steps)
        for step in range(steps):
            picture = Image.new("RGB", (64, 32), (step % 256, 0, 0))
            bar.update_absolute(step + 1, steps, ("JPEG", picture, 512))
            time.sleep(pause)
        if fail:
            raise ValueError("asked to fail")
        return io.NodeOutput(steps, ui=ui.PreviewText(f"counted to {steps}"))


class PackForcingTestExpand(io.ComfyNode):
    """Expands to our sampler while it runs, as loops and groups do."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PackForcingTestExpand",
            category="PackForcing/tests",
            inputs=[
                io.Model.Input("model"),
                io.Conditioning.Input("positive"),
                io.Custom("PACKFORCING_CACHE").Input("cache"),
            ],
            outputs=[io.Custom("PACKFORCING_STREAM").Output()],
            enable_expand=True,
        )

    @classmethod
    def execute(cls, model, positive, cache) -> io.NodeOutput:
        graph = GraphBuilder()
        size = {"seconds": 1.0, "width": 64, "height": 32, "fps": 16.0, "seed": 0}
        chosen = {"preset": "auto", "frames_per_block": 0, "timesteps": "", "shift": 0.0}
        inside = graph.node("PackForcingSampler", model=model, positive=positive, kv_cache=cache, **size, **chosen)
        return io.NodeOutput(inside.out(0), expand=graph.finalize())


class Cropped(InputImpl.VideoFromFile):
    """The left half of a video file, as newer versions of ComfyUI crop one: its file is still the whole one."""

    def get_dimensions(self) -> tuple[int, int]:
        width, height = super().get_dimensions()
        return width // 2, height

    def save_to(self, path, *arguments, **settings) -> None:
        parts = self.get_components()
        half = replace(parts, images=parts.images[:, :, : parts.images.shape[2] // 2])
        InputImpl.VideoFromComponents(half).save_to(path, *arguments, **settings)


class PackForcingTestCrop(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PackForcingTestCrop",
            category="PackForcing/tests",
            inputs=[io.Video.Input("video")],
            outputs=[io.Video.Output()],
        )

    @classmethod
    def execute(cls, video) -> io.NodeOutput:
        return io.NodeOutput(Cropped(video.get_stream_source()))


class TestExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            PackForcingTestConditioning,
            PackForcingTestCrop,
            PackForcingTestClip,
            PackForcingTestQuantisedLoader,
            PackForcingTestReplace,
            *ATTACHED,
            PackForcingTestHold,
            PackForcingTestCount,
            PackForcingTestExpand,
        ]


async def comfy_entrypoint() -> TestExtension:
    return TestExtension()
