"""PackForcing KV Cache: which past a block may see. The policies and their knobs are the core's own."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

from ..packforcing_core.cache.config import POLICIES, Knob, build_policy
from ..packforcing_core.errors import PackForcingError
from .sockets import CATEGORY, CacheSocket


def knob_input(knob: Knob) -> io.Input:
    """The widget of one knob of a policy."""
    if isinstance(knob.default, bool):
        return io.Boolean.Input(knob.name, default=knob.default, tooltip=knob.help)
    if knob.choices:
        return io.Combo.Input(knob.name, options=list(knob.choices), default=knob.default, tooltip=knob.help)
    if isinstance(knob.default, float):
        return io.Float.Input(
            knob.name, default=knob.default, min=knob.minimum, max=knob.maximum, step=0.0625, tooltip=knob.help
        )
    return io.Int.Input(knob.name, default=knob.default, min=knob.minimum, max=knob.maximum, tooltip=knob.help)


class KVCacheConfig(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PackForcingKVCache",
            display_name="PackForcing KV Cache",
            category=CATEGORY,
            description="What each block of the video may see of the past, which is what decides memory. Leave the "
            "sampler's cache input open to use what the checkpoint was trained with.",
            search_aliases=["kv cache", "sink", "window", "long video memory"],
            inputs=[
                io.DynamicCombo.Input(
                    "policy",
                    options=[
                        io.DynamicCombo.Option(name, [knob_input(knob) for knob in policy.knobs()])
                        for name, policy in POLICIES.items()
                    ],
                    tooltip="; ".join(f"{name}: {policy.title}" for name, policy in POLICIES.items()),
                ),
            ],
            outputs=[CacheSocket.Output(display_name="cache")],
        )

    @classmethod
    def execute(cls, policy: dict | None = None) -> io.NodeOutput:
        if policy is None:  # ComfyUI drops a menu whose choice it does not know.
            raise PackForcingError(f"Unknown cache policy; expected one of {', '.join(POLICIES)}.")
        knobs = dict(policy)
        return io.NodeOutput(build_policy(knobs.pop("policy"), **knobs))
