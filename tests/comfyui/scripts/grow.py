"""ComfyUI's own autoregressive sampler and ours in turns, in ComfyUI's folder:
`python grow.py DEVICE WEIGHTS POSITIONS ROUNDS MINUTES RUN...`

POSITIONS are the blocks to time, counted from 1, as JSON; each is made ROUNDS times (or as often as begins within
MINUTES), and once before to warm up, at the same place every time, behind random keys and values. ComfyUI's sampler
makes one video, of which every block is moved to the position whose turn it is (what its cache holds there it writes
over); a stream of ours is put back. A RUN is a policy of ours, "POLICY compiled", or "bare passes". Prints one JSON
line with CPU seconds of the one thread (what else runs on the machine counts little) by run and position. Between two
blocks of ComfyUI's each RUN makes one, off its clock. On a GPU the weights are random ones of the 1.3B at 832x480 in
bf16, WEIGHTS is ignored, the clock is that of the wall, and a stream of ours is not put back, as two of its cache do
not fit beside ComfyUI's: it goes on by a block each time.
"""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file

device_name, weights_file, positions, rounds, minutes = *sys.argv[1:3], *map(json.loads, sys.argv[3:6])
names = sys.argv[6:]
CPU = device_name == "cpu"
sys.argv = ["main.py", *(["--cpu"] if CPU else [])]
sys.path.insert(0, str(Path.cwd()))

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()  # the modules below read the options when they are imported

import comfy.ops  # noqa: E402
from comfy.k_diffusion.sampling import sample_ar_video  # noqa: E402
from comfy.ldm.wan.ar_model import CausalWanModel  # noqa: E402

from packforcing_core.attention import Capability, attention_named  # noqa: E402
from packforcing_core.cache.config import build_policy  # noqa: E402
from packforcing_core.laboratory.bench.bare import BarePasses  # noqa: E402
from packforcing_core.laboratory.bench.clock import synchronize  # noqa: E402
from packforcing_core.laboratory.bench.protocol import compiled_graphs  # noqa: E402
from packforcing_core.laboratory.bench.subject import FRAMES_PER_BLOCK, SCALES, Stream, build_model  # noqa: E402
from packforcing_core.model.causal import CausalWan  # noqa: E402
from packforcing_core.model.config import WanConfig  # noqa: E402
from packforcing_core.model.ops import TorchOps  # noqa: E402
from packforcing_core.model.wan import Wan  # noqa: E402

DEVICE, DTYPE = torch.device(device_name), torch.float32 if CPU else torch.bfloat16
WEIGHTS = load_file(weights_file) if CPU else build_model(SCALES["1.3B"], DEVICE, DTYPE).net.state_dict()
CONFIG = WanConfig.from_state_dict(WEIGHTS)
SCALE = replace(SCALES["small" if CPU else "1.3B"], config=CONFIG, blocks=max(positions) + (1 if CPU else rounds + 2))
THEIR_BLOCKS = max(max(positions), (rounds + 1) * len(positions))
TOKENS = SCALE.geometry.tokens_per_frame * FRAMES_PER_BLOCK
THEIRS = "ComfyUI SamplerARVideo"
ATTENTION = attention_named("auto", Capability.of(DEVICE, DTYPE, CONFIG.head_dim))
torch.set_num_threads(1)


def now() -> float:
    """Seconds: of the thread on a CPU, by the wall on a GPU once it has done what it was given."""
    synchronize(DEVICE)
    return time.process_time() if CPU else time.perf_counter()


def their_net() -> CausalWanModel:
    net = CausalWanModel(
        dim=CONFIG.dim,
        ffn_dim=CONFIG.ffn_dim,
        text_dim=CONFIG.text_dim,
        num_heads=CONFIG.num_heads,
        num_layers=CONFIG.num_layers,
        dtype=DTYPE,
        device=DEVICE,
        operations=comfy.ops.disable_weight_init,
    )
    net.load_state_dict(WEIGHTS)
    return net.eval().requires_grad_(False)


def our_net() -> Wan:
    net = Wan(CONFIG, TorchOps)
    net.load_state_dict(WEIGHTS)
    return net.eval().requires_grad_(False)


class TheirDenoiser:
    """What ComfyUI's sampler calls: (noisy latents, sigma) -> clean latents. It sees when a block begins, and counts
    all until the next one as that block's: its steps, its noise and the pass that keeps it.
    """

    def __init__(self, net: CausalWanModel, context: torch.Tensor, turns: Iterator[int], after_block):
        self.net, self.context = net, context
        self.turns, self.after_block = turns, after_block
        self.state = self.position = None
        self.inner_model = SimpleNamespace(inner_model=SimpleNamespace(diffusion_model=net, get_dtype=lambda: DTYPE))

    def __call__(self, x, sigma, model_options, seed):
        options = model_options["transformer_options"]
        if options["ar_state"] is not self.state:
            self.end_block()
            self._begin_block(options["ar_state"])
        if self.position is None:  # All turns are over, but the video is not.
            return x
        flow = self.net(x.to(DTYPE), 1000 * sigma, self.context, transformer_options=options)
        return x - sigma.view(-1, 1, 1, 1, 1) * flow

    def _begin_block(self, state: dict) -> None:
        if self.state is None:
            for cache in state["kv_caches"]:
                cache["k"].normal_()
                cache["v"].normal_()
        self.state, self.position = state, next(self.turns, None)
        if self.position is not None:
            state["start_frame"] = (self.position - 1) * FRAMES_PER_BLOCK
            for cache in state["kv_caches"]:
                cache["end"] = (self.position - 1) * TOKENS
        self.began = now()

    def end_block(self) -> None:
        if self.position is not None:
            self.after_block(self.position, now() - self.began)


class OurRun:
    """One of the runs beside theirs; `seconds(position)` makes that block."""

    def __init__(self, name: str, net: CausalWanModel):
        policy, _, compiled = name.partition(" ")
        bare = name == "bare passes"
        model = CausalWan(
            our_net() if compiled and not bare else net,
            CONFIG,
            dtype=DTYPE,
            device=DEVICE,
            attention=ATTENTION,
            compiled=compiled == "compiled",
        )
        self.streams = {}
        self.blocks = {}
        for position in positions if not bare else (max(positions),):
            stream = Stream(model, SCALE, None if bare else build_policy(policy)).placed(position)
            if CPU:
                stream.stay()
            self.streams[position] = stream
            self.blocks[position] = BarePasses(stream).block if bare else stream.block
        self.denoising = stream.denoising
        self.bytes = stream.cache.nbytes + stream.cache.host_nbytes

    def seconds(self, position: int) -> float:
        position = position if position in self.blocks else max(self.blocks)  # Bare passes are the same everywhere.
        if CPU:
            self.streams[position].again()
        began = now()
        self.blocks[position]()
        return now() - began


def turns() -> Iterator[int]:
    """The positions by rounds, each round begun with another; the first round is not counted."""
    began = time.monotonic()
    for number in range(rounds + 1):
        if number > 1 and time.monotonic() - began > 60 * minutes:
            return
        first = number % len(positions)
        yield from positions[first:] + positions[:first]


def main() -> None:
    net = their_net()
    ours = {name: OurRun(name, net) for name in names}
    seconds = {name: {position: [] for position in positions} for name in (THEIRS, *names)}
    graphs = []
    geometry = SCALE.geometry
    their_bytes = (
        2 * CONFIG.dim * DTYPE.itemsize * CONFIG.num_layers * TOKENS * max(positions)
    )  # As for a video of so many blocks.

    def after_block(position: int, took: float) -> None:
        seconds[THEIRS][position].append(took)
        for name, run in ours.items():
            seconds[name][position].append(run.seconds(position))
        graphs.append(compiled_graphs())

    _, channels, frames, height, width = geometry.block_shape
    noise = torch.randn(1, channels, THEIR_BLOCKS * frames, height, width).to(DEVICE)
    sigmas = torch.tensor([*next(iter(ours.values())).denoising.schedule.sigmas, 0.0]).to(DEVICE)
    extra = {"model_options": {"transformer_options": {}}, "seed": 0}
    context = torch.randn(1, 512, CONFIG.text_dim, generator=torch.Generator().manual_seed(0)).to(DEVICE, DTYPE)
    denoiser = TheirDenoiser(net, context, turns(), after_block)
    with torch.inference_mode():
        sample_ar_video(denoiser, noise, sigmas, extra, disable=True, num_frame_per_block=FRAMES_PER_BLOCK)
        denoiser.end_block()  # The video's last block has none behind it.
    settings = {
        "width": CONFIG.dim,
        "layers": CONFIG.num_layers,
        "tokens per frame": geometry.tokens_per_frame,
        "frames per block": FRAMES_PER_BLOCK,
        "steps": len(sigmas) - 1,
        "rounds": len(graphs) // len(positions) - 1,
        "torch": torch.__version__,
    }
    samplers = {
        name: {"seconds": {p: values[1:] for p, values in at.items()}, "cache_bytes": their_bytes}
        for name, at in seconds.items()
    }
    for name, run in ours.items():
        samplers[name]["cache_bytes"] = run.bytes
    per_round = graphs[len(positions) - 1 :: len(positions)]
    print(json.dumps({"settings": settings, "samplers": samplers, "compiled_graphs": per_round}))


main()
