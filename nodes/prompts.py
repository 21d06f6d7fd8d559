"""PackForcing Timed Prompts and Timed Prompt (Chain): prompts that change over time, as a native CONDITIONING.

A CONDITIONING is a list of entries. If there are several, each carries the second at which it starts.
"""

from __future__ import annotations

from comfy_api.v0_0_2 import io

from ..packforcing_core.errors import PackForcingError
from ..packforcing_core.text.marks import unmarked
from ..packforcing_core.text.timeline import LATEST_SECONDS, parse_timeline
from .conditioning import after, from_second
from .sockets import CATEGORY
from .tell import say

EXAMPLE = """A paper boat on a pond, watercolour, soft light.
[0s] It drifts slowly between lilies.
[12.5s] Rain begins to fall, rings spread on the water.
[1m05s] The sun comes out, the boat lies on the bank."""


def _blend_input() -> io.Input:
    return io.Float.Input(
        "blend_seconds",
        default=0.0,
        min=0.0,
        max=60.0,
        step=0.1,
        tooltip="Cross-fade from the previous prompt, in seconds, rounded to blocks (0.75 s for blocks "
        "of 3). 0: switch at once.",
    )


def _recache_input() -> io.Input:
    return io.Boolean.Input(
        "recache",
        default=False,
        tooltip="Recompute the KV cache of the visible blocks with the new prompt (LongLive's KV "
        "recache). The change shows sooner; costs one extra forward pass per visible block. Off: "
        "the change is softer.",
    )


class TimedPrompts(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PackForcingTimedPrompts",
            display_name="PackForcing Timed Prompts",
            category=CATEGORY,
            description="Prompts that change over time, from one text: [0s] first prompt [12.5s] second prompt. "
            "The sampler moves each time to the nearest block and shows the times that result.",
            search_aliases=["prompt schedule", "prompt travel", "timeline", "multi prompt", "storyboard"],
            inputs=[
                io.Clip.Input("clip", tooltip="The umT5-XXL text encoder."),
                io.String.Input(
                    "timeline",
                    default=EXAMPLE,
                    multiline=True,
                    tooltip="Times as [0s], [12.5s], [1m05s] or [1:05]; the first is [0s]. Text before it is "
                    "put in front of every prompt. A text without times is one prompt. [20s cut] is a hard cut to a "
                    "new scene; [20s flush] continues the shot and forgets all but the sink and the newest block.",
                ),
                io.String.Input(
                    "prefix",
                    default="",
                    multiline=True,
                    tooltip="Put before every prompt: the subject and the style that stay. The KV cache holds "
                    "images, not words: name the subject in every prompt.",
                ),
                _blend_input(),
                _recache_input(),
            ],
            outputs=[io.Conditioning.Output(tooltip="The prompts with their times, for the sampler's positive.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, timeline: str | None = None) -> bool | str:
        # Without the prefix: ComfyUI marks every input that is named here, and only this one can be wrong.
        try:
            parse_timeline(timeline or "")
        except PackForcingError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, clip, timeline: str, prefix: str, blend_seconds: float, recache: bool) -> io.NodeOutput:
        prompts = parse_timeline(timeline, prefix)
        encoded = {prompt.prompt: None for prompt in prompts}
        for text in encoded:
            encoded[text] = clip.encode_from_tokens_scheduled(clip.tokenize(text))
        conditioning = []
        for prompt in prompts:
            timed = prompt.seconds, blend_seconds, recache, prompt.change
            conditioning += from_second(encoded[prompt.prompt], *timed)
        lines = (f"{f'{p.seconds:g} s {p.change}'.strip()}: {p.prompt}" for p in prompts)
        text = "\n".join([*unmarked(timeline), *lines])
        say(cls.hidden.unique_id, text)
        return io.NodeOutput(conditioning, ui={"text": (text,)})


class PromptAt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PackForcingPromptAt",
            display_name="PackForcing Timed Prompt (Chain)",
            category=CATEGORY,
            description="Adds a prompt at a time of the video, after the prompts before it. Any node that "
            "encodes text can be used, one per prompt.",
            search_aliases=["prompt schedule", "prompt travel", "combine prompts over time"],
            inputs=[
                io.Conditioning.Input("conditioning", tooltip="The prompt, from CLIP Text Encode."),
                io.Conditioning.Input(
                    "previous",
                    optional=True,
                    tooltip="The prompts before this one. If not connected, this is the first, at 0 s.",
                ),
                io.Float.Input(
                    "seconds",
                    default=0.0,
                    min=0.0,
                    max=LATEST_SECONDS,
                    step=0.1,
                    tooltip="Time in the video. The first prompt: 0.",
                ),
                _blend_input(),
                _recache_input(),
            ],
            outputs=[
                io.Conditioning.Output(tooltip="All prompts so far, for the sampler or the next Timed Prompt (Chain).")
            ],
        )

    @classmethod
    def execute(cls, conditioning, seconds: float, blend_seconds: float, recache: bool, previous=None) -> io.NodeOutput:
        own = from_second(conditioning, seconds, blend_seconds, recache)
        return io.NodeOutput(after(previous, own) if previous else own)
