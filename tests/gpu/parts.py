"""The parts of a run on a GPU. Each fills a `Result`, which is on disk after every line."""

from __future__ import annotations

import faulthandler
import gc
import json
import platform
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

from packforcing_core.attention import Capability, attention_named, supported
from packforcing_core.cache.config import PackForcing, build_policy
from packforcing_core.devices import usable_device
from packforcing_core.geometry import GB
from packforcing_core.kernels import fast
from packforcing_core.laboratory.bench import protocol
from packforcing_core.laboratory.bench.report import markdown
from packforcing_core.laboratory.bench.subject import SCALES, Scale, Stream, build_model, build_vae
from packforcing_core.model.config import WanConfig
from packforcing_core.vae.config import VAEConfig
from packforcing_core.vae.streaming import to_frames
from packforcing_core.vae.tiny import TinyDecoder, TinyVAE
from tests.gpu import checks
from tests.gpu.film import film

TINY = Scale(
    "tiny",
    WanConfig(dim=128, ffn_dim=128, num_layers=2, num_heads=1, text_dim=16, text_len=8, freq_dim=32),
    VAEConfig(encoder_dim=8, decoder_dim=8, num_res_blocks=1),
    width=64,
    height=48,
)
TAEHV_WIDTHS = (256, 128, 64, 64)


@dataclass
class Result:
    """What a part has found so far."""

    path: Path
    device: torch.device
    tiny: bool

    def __post_init__(self) -> None:
        self.lines: dict[str, object] = {}

    def put(self, what: str, value: object) -> None:
        self.lines[what] = value
        self.path.write_text(json.dumps(self.lines, indent=1), encoding="utf-8")
        print(what, value, flush=True)

    def tried(self, what: str, run: Callable[[], object]) -> None:
        """`run`'s result, or how it failed; the part goes on."""
        try:
            self.put(what, run())
        except Exception as error:
            traceback.print_exc()
            self.put(what, f"FAILED: {type(error).__name__}: {str(error)[:300]}")

    @property
    def scale(self) -> Scale:
        return TINY if self.tiny else SCALES["1.3B"]

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32


def environment(result: Result) -> None:
    result.put("python, torch, CUDA", f"{platform.python_version()}, {torch.__version__}, {torch.version.cuda}")
    result.put("cuDNN", torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None)
    for name in ("triton", "einops", "safetensors"):
        result.tried(name, lambda name=name: __import__(name).__version__)
    if shutil.which("git"):
        asked = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        result.put("commit", asked.stdout.strip() or "not to be had")
    if result.device.type == "cuda":
        properties = torch.cuda.get_device_properties(result.device)
        result.put(
            "GPU", f"{properties.name}, {properties.total_memory / GB:.1f} GB, sm_{properties.major}{properties.minor}"
        )
        query = ["nvidia-smi", "--query-gpu=driver_version,power.limit,clocks.max.sm", "--format=csv,noheader"]
        result.tried("driver, power limit, clock", lambda: subprocess.check_output(query, text=True).strip())
    result.put("Triton kernels serve", fast.usable(result.device))
    capability = Capability.of(result.device, result.dtype, 128)
    result.put("attention backends", ", ".join(supported(capability, exact=False)))


def twins(result: Result) -> None:
    """Every fast path against its plain twin."""
    for name, check in checks.CHECKS.items():
        result.tried(name, lambda check=check: check(result.device))


def headline(result: Result) -> None:
    """The whole of `packforcing bench`: three FPS lines, parts, first frame, peak, flatness, the kernels' rates."""
    rounds, positions = (1, (5, 21, 30)) if result.tiny else (10, (21, 60, 115))
    plan = protocol.Plan(
        result.scale, result.device, result.dtype, rounds, 5, positions, attention="auto", survival=False
    )
    measured = protocol.measure(plan, lambda what: print("measuring", what, flush=True))
    (result.path.parent / "bench.md").write_text(markdown(measured), encoding="utf-8")
    (result.path.parent / "bench.json").write_text(json.dumps(measured), encoding="utf-8")
    for name in ("fps", "split", "first_frame_seconds", "end_to_end_seconds", "peak_bytes", "flatness", "growth"):
        result.put(name, measured[name])
    for name in ("loop_overhead", "window_over_ours", "bytes", "kernels", "roofline_share", "block_seconds"):
        result.put(name, measured[name])


def recorded(result: Result) -> None:
    """A whole recorded render to an mp4."""
    film(result, result.scale, result.device, result.dtype, seconds=6 if result.tiny else 120)


def peer(result: Result) -> None:
    """ComfyUI's SamplerARVideo in turns with ours; its cache is sized for the whole clip, 1.15 GB a block."""
    if result.device.type != "cuda":
        result.put("not rehearsed here", "`python -m tests.benchmarks.blocks` is the same on a CPU")
        return
    from tests.benchmarks import blocks  # It needs the test set-up, which the other parts do without.

    longest = 60 if torch.cuda.get_device_properties(result.device).total_memory > 120 * GB else 40
    measured = blocks.measure([5, 21, longest], 3, 1.5, [blocks.OURS, "window"], device="cuda")
    (result.path.parent / "blocks.json").write_text(json.dumps(measured), encoding="utf-8")
    for what, value in measured["settings"].items():
        result.put(what, value)
    for name, run in measured["samplers"].items():
        times = {position: round(median(values), 4) for position, values in run["seconds"].items()}
        result.put(
            f"{name}: seconds of the block at each position, cache", f"{times}, {run['cache_bytes'] / GB:.2f} GB"
        )


def backends(result: Result) -> None:
    """Blocks with each attention backend in turns, and decodes with each layout and number of frames at once."""
    capability = Capability.of(result.device, result.dtype, result.scale.config.head_dim)
    model = build_model(result.scale, result.device, result.dtype)
    stream = Stream(model, result.scale).placed(21)
    with torch.no_grad():
        for name in (*supported(capability, exact=False), "sdpa"):
            attention = attention_named(name, capability)
            model.attention = stream.cache.attention = attention
            result.tried(f"block with {name}, s", lambda: _median(stream.block, result.device))
            result.tried(
                f"first call of {name} at a new length",
                lambda name=name: checks.first_calls(result.device, result.dtype, name),
            )
    _free(result.device)
    vae = build_vae(result.scale, result.device, result.dtype)
    for name, seconds in checks.decode_times(vae, result.scale, result.device, result.dtype).items():
        result.put(f"decode of a block, {name}, s", seconds)
    tiny = TinyDecoder(TinyVAE(TAEHV_WIDTHS, raw_latents=False).to(result.device, result.dtype))
    latents = checks.numbers(result.device, *result.scale.geometry.block_shape)
    result.tried(
        "decode of a block, TAEHV, to the host, s",
        lambda: _median(lambda: to_frames(tiny.push(latents)), result.device),
    )


def caps(result: Result) -> None:
    """Blocks within 12 GB and within 8 GB, with the settings that the plan gives for them."""
    settings = {12: {"kv_int8": "all"}, 8: {"kv_int8": "all", "sink_frames": 4, "recent_frames": 4, "top_k_blocks": 8}}
    for gigabytes, knobs in settings.items():
        result.tried(f"{gigabytes} GB, {knobs}", lambda g=gigabytes, k=knobs: _capped(result, g, k))
        _free(result.device)


def _capped(result: Result, gigabytes: int, knobs: dict) -> str:
    if result.device.type == "cuda":
        whole = torch.cuda.get_device_properties(result.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, gigabytes * GB / whole), result.device)
        torch.cuda.reset_peak_memory_stats(result.device)
    scale = replace(result.scale, blocks=40)
    model = build_model(scale, result.device, result.dtype)
    vae = build_vae(scale, result.device, result.dtype)
    stream = Stream(model, scale, build_policy("packforcing", **knobs), vae)
    for _ in range(2):
        stream.block()
    stream.placed(20 if not result.tiny else 8)
    seconds = _median(stream.block, result.device)
    peak = torch.cuda.max_memory_allocated(result.device) if result.device.type == "cuda" else 0
    return f"{16 / seconds:.2f} FPS decoded in turn, peak {peak / GB:.2f} GB"


def compiled(result: Result) -> None:
    """Layers through torch.compile: what they compute, and a block's time beside that of the plain layers."""
    result.tried("largest difference from plain layers", lambda: checks.compiled(result.device))
    for name, asked in (("plain", False), ("compiled", True)):
        model = build_model(result.scale, result.device, result.dtype, compiled=asked)
        stream = Stream(model, result.scale).placed(21)
        with torch.no_grad():
            result.tried(f"a block of {name} layers, s", lambda stream=stream: _median(stream.block, result.device))
        del model, stream
        _free(result.device)


def profile(result: Result) -> None:
    """A trace of one block, and where its time goes."""
    from torch.profiler import ProfilerActivity, profile

    cuda = result.device.type == "cuda"
    model = build_model(result.scale, result.device, result.dtype)
    vae = build_vae(result.scale, result.device, result.dtype)
    stream = Stream(model, result.scale, PackForcing(), vae).placed(21)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as traced:
        stream.block()
    traced.export_chrome_trace(str(result.path.parent / "trace.json"))
    key = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    for event in sorted(traced.key_averages(), key=lambda e: -getattr(e, key.replace("cuda", "device"), 0))[:25]:
        result.put(event.key[:80], f"{event.count} x, {getattr(event, key.replace('cuda', 'device'), 0) / 1000:.2f} ms")


def _median(run: Callable[[], object], device: torch.device, repeats: int = 3) -> float:
    from packforcing_core.laboratory.bench.clock import seconds_of

    run()
    return round(sorted(seconds_of(run, device) for _ in range(repeats))[repeats // 2], 5)


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


class Part(NamedTuple):
    """What is run, for how many seconds at most, and what it tells."""

    run: Callable[[Result], None]
    seconds: float
    title: str


PARTS = {
    "environment": Part(environment, 60, "the machine"),
    "twins": Part(twins, 90, "largest difference of every fast path from its plain twin"),
    "headline": Part(headline, 150, "1.3B, 832x480, blocks of 4, policy packforcing 8/4/16, random weights"),
    "recorded": Part(recorded, 180, "a recorded render of 120 s at 832x480 to an mp4, random weights"),
    "caps": Part(caps, 90, "within 12 and 8 GB"),
    "peer": Part(peer, 150, "ComfyUI's SamplerARVideo, a rolling window and ours, in turns"),
    "backends": Part(backends, 90, "attention backends and decoder layouts, A against B"),
    "profile": Part(profile, 90, "where the time of a block goes"),
    "compiled": Part(compiled, 150, "layers through torch.compile"),
}


def main() -> int:
    name, folder, device, *flags = sys.argv[1:]
    faulthandler.enable()  # A part that is cut off says where it was.
    if device == "cpu":
        torch.set_num_threads(1)
    PARTS[name].run(Result(Path(folder) / f"{name}.json", usable_device(device), "--tiny" in flags))
    return 0


if __name__ == "__main__":
    sys.exit(main())
