"""The whole measurement, as one dictionary that JSON can hold."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import torch

from ...attention import Capability, attention_named
from ...cache.config import Window
from ...cache.policy import TRAINED_FRAMES
from ...geometry import PIXEL_FRAMES_PER_LATENT
from ...model.causal import CausalWan
from ...render.writing import written_events
from ...sampler.denoising import BlockDone
from ...sampler.rollout import rollout
from ...vae.streaming import StreamingDecoder
from .bare import BarePasses
from .clock import Laps, in_turns, p95, ratio, seconds_of
from .micro import attention_rates, conv_rates, matmul_rate
from .subject import EARLY, FRAMES_PER_BLOCK, Plan, Stream, build_model, build_vae
from .survival import survival
from .work import Work, commit_work, decode_work, pass_work

BARE, WINDOW = "bare passes", "window"
PARTS = ("steps", "commit", "compress", "twin", "decode", "to host")

Tell = Callable[[str], None]


def measure(plan: Plan, tell: Tell) -> dict[str, Any]:
    """Runs all measurements; `tell` is called with the name of each. On a CPU only the ratios are meaningful."""
    capability = Capability.of(plan.device, plan.dtype, plan.scale.config.head_dim)
    attention = attention_named(plan.attention, capability)
    model = build_model(plan.scale, plan.device, plan.dtype, attention, plan.compiled)
    tell("blocks in turns")
    result = {"settings": _settings(plan), **_blocks(plan, model)}
    tell("decoding")
    result |= _decoding(plan, model)
    if plan.survival:
        tell("recording and resuming")
        result |= survival(plan, model)
    tell("kernels")
    return result | _kernels(plan, model, result)


def _settings(plan: Plan) -> dict[str, Any]:
    cuda = plan.device.type == "cuda"
    return {
        "scale": plan.scale.name,
        "pixels": f"{plan.scale.width}x{plan.scale.height}",
        "frames_per_block": FRAMES_PER_BLOCK,
        "device": torch.cuda.get_device_name(plan.device) if cuda else platform.processor() or platform.machine(),
        "device_type": plan.device.type,
        "dtype": str(plan.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "attention": plan.attention,
        "compiled": plan.compiled,
        "rounds": plan.rounds,
        "positions": "the same block each round" if plan.returns else "blocks from there on",
    }


def named(position: int) -> str:
    """The name of a stream that starts at block `position`."""
    return f"block {position}"


def _blocks(plan: Plan, model: CausalWan) -> dict[str, Any]:
    """Times blocks at each position of a render, with a rolling window, and bare model calls, all alternating."""
    streams = {named(position): Stream(model, plan.scale).placed(position) for position in plan.positions}
    early = streams[named(EARLY)]
    streams[WINDOW] = Stream(model, plan.scale, Window(TRAINED_FRAMES)).placed(EARLY)
    if plan.returns:
        streams = {name: stream.stay() for name, stream in streams.items()}
    back = {name: stream.again for name, stream in streams.items()} if plan.returns else {}
    runs = {name: stream.block for name, stream in streams.items()} | {BARE: BarePasses(early).block}
    for name, run in runs.items():
        back.get(name, lambda: None)()
        run()
    graphs = compiled_graphs()
    seconds = in_turns(runs, plan.rounds, plan.device, warm_up=0, before=back)
    at_early = seconds[named(EARLY)]
    growth = {named(position): ratio(seconds[named(position)], at_early) for position in plan.positions}
    sizes = {name: s.cache.nbytes + s.cache.host_nbytes for name, s in streams.items() if name != WINDOW}
    return {
        "flatness": max(growth[named(position)] for position in plan.positions if position > EARLY),
        "growth": growth,
        "loop_overhead": ratio(at_early, seconds[BARE]) - 1,
        "window_over_ours": ratio(seconds[WINDOW], at_early),
        "block_seconds": {name: {"median": median(s), "p95": p95(s)} for name, s in seconds.items()},
        "samples": seconds,
        "compiled_graphs": {"before": graphs, "after": compiled_graphs()},
        "bytes": {
            "cache": early.cache.shape.cache_bytes(early.cache.partitions),
            "buffers": early.cache.nbytes,
            "with the bank": sizes,
            "constant": len(set(sizes.values())) == 1,
        },
    }


def _decoding(plan: Plan, model: CausalWan) -> dict[str, Any]:
    """Times a block's parts with its decode, the first frame, and decoding in parallel with the transformer; peak
    memory.
    """
    vae = build_vae(plan.scale, plan.device, plan.dtype)
    _reset_peak(plan.device)
    first = Stream(model, plan.scale, vae=vae)
    latency = seconds_of(first.block, plan.device)
    stream = Stream(model, plan.scale, vae=vae)
    stream.skip(EARLY - 2)
    stream.block()
    parts: dict[str, list[float]] = {name: [] for name in PARTS}
    for _ in range(plan.decoded_rounds):
        laps = Laps(plan.device)
        stream.block(laps)
        for name, seconds in laps.seconds().items():
            parts[name].append(seconds)
    split = {name: median(seconds) for name, seconds in parts.items()}
    in_turn = [sum(round_) for round_ in zip(*parts.values(), strict=True)]
    frames = PIXEL_FRAMES_PER_LATENT * FRAMES_PER_BLOCK
    dit = split["steps"] + split["commit"] + split["compress"] + split["twin"]
    beside = _beside(plan, model, vae)
    return {
        "first_frame_seconds": latency,
        "split": split,
        "fps": {
            "transformer only": frames / dit,
            "decoded in turn": frames / median(in_turn),
            # Wall time counts two threads at once; the other CPU times are those of one thread.
            **({"end to end": frames / beside} if plan.device.type == "cuda" else {}),
        },
        "end_to_end_seconds": beside,
        "peak_bytes": _peak(plan.device),
    }


class _Discard:
    """A video writer that discards its frames."""

    def write(self, frames) -> None: ...

    def end_segment(self) -> None: ...


def _beside(plan: Plan, model: CausalWan, vae) -> float:
    """Wall seconds per block until its frames are on the CPU, as in a render: the rollout decodes, because compressed
    tokens need the frames, and frames are copied to the CPU while the next block is sampled.
    """
    stream = Stream(model, plan.scale, vae=vae)
    stream.skip(EARLY - 1)
    blocks = EARLY - 1 + plan.decoded_rounds + 1
    with torch.no_grad():
        events = rollout(
            model,
            stream.context,
            stream.cache,
            stream.noise,
            stream.denoising,
            blocks + 1,
            compression=replace(stream.compression, decoder=stream.decoder),
            stop=blocks,
        )
        film = written_events(events, StreamingDecoder(vae), _Discard(), blocks_per_segment=blocks)
        while not isinstance(next(film), BlockDone):
            continue  # The first decode of a render does different work.
        seconds = seconds_of(lambda: list(film), plan.device)
    return seconds / plan.decoded_rounds


def _kernels(plan: Plan, model: CausalWan, result: dict[str, Any]) -> dict[str, Any]:
    """Speeds of the kernels, and the share of them that the whole block reaches."""
    scale, device, dtype = plan.scale, plan.device, plan.dtype
    stream = Stream(model, scale)
    seen = stream.cache.shape.attended_tokens(stream.cache.partitions)
    matmul = matmul_rate(scale, device, dtype, plan.repeats)
    attention = attention_rates(scale, seen, device, dtype, plan.repeats)
    conv = conv_rates(scale, device, dtype, plan.repeats)
    rates = {"linear": matmul, "attention": max(attention.values()), "conv": max(conv.values())}
    tokens = scale.geometry.tokens_per_frame * FRAMES_PER_BLOCK
    steps = Work().plus(pass_work(scale.config, tokens, seen), len(stream.denoising.schedule))
    work = {
        "steps": steps,
        "commit": commit_work(scale.config, tokens, seen),
        "decode": decode_work(scale.vae, scale.height, scale.width, FRAMES_PER_BLOCK),
    }
    share = {name: part.floor_seconds(rates) / result["split"][name] for name, part in work.items()}
    return {
        "kernels": {"matmul": matmul, "attention": attention, "conv": conv},
        "operations": {name: sum(part) for name, part in work.items()},
        "roofline_share": share,
    }


def compiled_graphs() -> int:
    """How many graphs torch.compile has made in this process."""
    if "torch._dynamo.utils" not in sys.modules:  # Importing it takes seconds.
        return 0
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> int | None:
    """Peak bytes: allocated on a GPU since the reset, otherwise the resident memory of this process; None if
    unknown.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
