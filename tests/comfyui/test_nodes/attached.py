"""Nodes that attach to a MODEL or a VAE what nodes of other packs do."""

from __future__ import annotations

import torch
from comfy_api.v0_0_2 import io


class PackForcingTestAttention(io.ComfyNode):
    """Replaces the attention of every layer as attention nodes do: its output times `strength`. It counts its calls."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PackForcingTestAttention",
            category="PackForcing/tests",
            inputs=[io.Model.Input("model"), io.Float.Input("strength", default=1.0)],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, strength: float) -> io.NodeOutput:
        model = model.clone()

        calls = [0]

        def weighted(function, *arguments, **settings):
            calls[0] += 1
            return strength * function(*arguments, **settings)

        options = model.model_options["transformer_options"]
        options["optimized_attention_override"] = torch.compiler.disable()(weighted)
        return io.NodeOutput(model)


class PackForcingTestLoras(io.ComfyNode):
    """Names LoRAs as other packs' loaders do, in a dictionary a row, and adds nothing to the MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        row = io.Custom("PACKFORCING_TEST_LORA")
        rows = [row.Input(f"lora_{number}", optional=True) for number in (1, 2, 3)]
        return io.Schema(
            node_id="PackForcingTestLoras",
            category="PackForcing/tests",
            inputs=[io.Model.Input("model"), *rows],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, **_) -> io.NodeOutput:
        return io.NodeOutput(model)


class PackForcingTestCompileVAE(io.ComfyNode):
    """Compiles the decoder of a VAE, as nodes of other packs do; with a backend that compiles nothing."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PackForcingTestCompileVAE",
            category="PackForcing/tests",
            inputs=[io.Vae.Input("vae")],
            outputs=[io.Vae.Output()],
        )

    @classmethod
    def execute(cls, vae) -> io.NodeOutput:
        network = vae.first_stage_model
        if not hasattr(network.decoder, "_orig_mod"):
            network.decoder = torch.compile(network.decoder, backend="eager")
        return io.NodeOutput(vae)


ATTACHED = (PackForcingTestAttention, PackForcingTestLoras, PackForcingTestCompileVAE)
