"""PackForcing KV Cache: which past frames a block attends to. Policies and knobs come from packforcing_core."""

from __future__ import annotations

from dataclasses import replace

from comfy_api.v0_0_2 import io

from ..packforcing_core.cache.config import POLICY_PRESETS, Policy
from ..packforcing_core.cache.policy import Knob
from ..packforcing_core.errors import PackForcingError
from .sockets import CATEGORY, CacheSocket


def knob_input(knob: Knob, preset: Policy) -> io.Input:
    """The widget of one policy knob, with the preset's value as default. It is optional: old workflows and API prompts
    may lack it.
    """
    value = getattr(preset, knob.name)
    shown = {"default": value, "tooltip": knob.help, "optional": True, "advanced": knob.advanced}
    if isinstance(value, bool):
        return io.Boolean.Input(knob.name, **shown)
    if knob.choices:
        return io.Combo.Input(knob.name, options=list(knob.choices), **shown)
    if isinstance(knob.default, float):
        return io.Float.Input(knob.name, min=knob.minimum, max=knob.maximum, step=0.0625, **shown)
    return io.Int.Input(knob.name, min=knob.minimum, max=knob.maximum, **shown)


class KVCacheConfig(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PackForcingKVCache",
            display_name="PackForcing KV Cache",
            category=CATEGORY,
            description="The KV cache policy: which past frames each block attends to, and so how much VRAM the cache "
            "takes. If the sampler's input is not connected, it uses what the checkpoint was trained with. The drawing "
            "shows to scale what is in view: before anything runs, and live while it renders.",
            search_aliases=[
                *("kv cache", "sink", "window", "long video memory"),
                *(name.lower() for name in POLICY_PRESETS),
            ],
            inputs=[
                io.DynamicCombo.Input(
                    "policy",
                    options=[
                        io.DynamicCombo.Option(name, [knob_input(knob, preset) for knob in preset.knobs()])
                        for name, preset in POLICY_PRESETS.items()
                    ],
                    tooltip="\n".join(f"{name}: {preset.keeps}." for name, preset in POLICY_PRESETS.items()),
                ),
            ],
            outputs=[CacheSocket.Output(display_name="cache", tooltip="For the sampler's kv_cache input.")],
        )

    @classmethod
    def execute(cls, policy: dict | None = None) -> io.NodeOutput:
        if policy is None:  # ComfyUI drops a menu whose choice it does not know.
            raise PackForcingError(f"Unknown cache policy; expected one of {', '.join(POLICY_PRESETS)}.")
        knobs = {name: value for name, value in policy.items() if value is not None}  # None: not in a saved workflow
        return io.NodeOutput(replace(POLICY_PRESETS[knobs.pop("policy")], **knobs))
