"""ComfyUI's own autoregressive sampler and ours in turns: `python grow.py WEIGHTS BLOCKS RUN...`, in ComfyUI's folder.

BLOCKS are those to time, counted from 1, as JSON; the others are passed over: their keys and values are zeros (theirs)
or random (ours), which takes as long to attend to. A RUN is a policy of ours, "POLICY compiled", or "bare passes".
Prints one JSON line with CPU seconds of the one thread (what else runs on the machine hardly counts) and cache bytes by
block. ComfyUI's sampler calls back after every denoising step; when the last step of a timed block is done, each RUN
makes one block inside the callback, off ComfyUI's clock.
"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file

weights_file, timed, names = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3:]
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, str(Path.cwd()))

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()  # the modules below read the options when they are imported

import comfy.ops  # noqa: E402
from comfy.k_diffusion.sampling import sample_ar_video  # noqa: E402
from comfy.ldm.wan.ar_model import CausalWanModel  # noqa: E402

from packforcing_core.bench.bare import BarePasses  # noqa: E402
from packforcing_core.bench.protocol import compiled_graphs  # noqa: E402
from packforcing_core.bench.subject import FRAMES_PER_BLOCK, SCALES, Stream  # noqa: E402
from packforcing_core.cache.config import build_policy  # noqa: E402
from packforcing_core.model.causal import CausalWan  # noqa: E402
from packforcing_core.model.config import WanConfig  # noqa: E402
from packforcing_core.model.ops import TorchOps  # noqa: E402
from packforcing_core.model.wan import Wan  # noqa: E402

WEIGHTS = load_file(weights_file)
CONFIG = WanConfig.from_state_dict(WEIGHTS)
SCALE = replace(SCALES["small"], config=CONFIG, blocks=max(timed))
TOKENS = SCALE.geometry.tokens_per_frame * FRAMES_PER_BLOCK
THEIRS = "ComfyUI SamplerARVideo"
torch.set_num_threads(1)


def their_net() -> CausalWanModel:
    net = CausalWanModel(
        dim=CONFIG.dim,
        ffn_dim=CONFIG.ffn_dim,
        text_dim=CONFIG.text_dim,
        num_heads=CONFIG.num_heads,
        num_layers=CONFIG.num_layers,
        dtype=torch.float32,
        operations=comfy.ops.disable_weight_init,
    )
    net.load_state_dict(WEIGHTS)
    return net.eval().requires_grad_(False)


def our_net() -> Wan:
    net = Wan(CONFIG, TorchOps)
    net.load_state_dict(WEIGHTS)
    return net.eval().requires_grad_(False)


class TheirDenoiser:
    """What ComfyUI's sampler calls: (noisy latents, sigma) -> clean latents."""

    def __init__(self, net: CausalWanModel, context: torch.Tensor):
        self.net, self.context = net, context
        self.inner_model = SimpleNamespace(
            inner_model=SimpleNamespace(diffusion_model=net, get_dtype=lambda: torch.float32)
        )

    def __call__(self, x, sigma, model_options, seed):
        options = model_options["transformer_options"]
        state = options["ar_state"]
        if state["start_frame"] // FRAMES_PER_BLOCK + 1 not in timed:
            for cache in state["kv_caches"]:
                cache["end"] += TOKENS
            return x
        return x - sigma.view(-1, 1, 1, 1, 1) * self.net(x, 1000 * sigma, self.context, transformer_options=options)


class OurRun:
    """One of the runs beside theirs; `block(number)` makes that block and returns the bytes of the cache."""

    def __init__(self, name: str, net: CausalWanModel):
        policy, _, compiled = name.partition(" ")
        self.bare = name == "bare passes"
        model = CausalWan(our_net() if compiled and not self.bare else net, CONFIG, compiled=compiled == "compiled")
        self.stream = Stream(model, SCALE, None if self.bare else build_policy(policy))
        self._block = BarePasses(self.stream).block if self.bare else self.stream.block

    def block(self, number: int) -> int:
        if not self.bare:
            self.stream.skip(number - 1 - self.stream.cache.next_block)
        began = time.process_time()
        self._block()
        self.seconds = time.process_time() - began
        return self.stream.cache.nbytes + self.stream.cache.host_nbytes


def main() -> None:
    net = their_net()
    ours = {name: OurRun(name, net) for name in names}
    runs = {name: {"blocks": [], "seconds": [], "cache_bytes": []} for name in (THEIRS, *names)}
    graphs = []
    clock = SimpleNamespace(started=time.process_time(), steps=0)
    steps = len(next(iter(ours.values())).stream.denoising.schedule)
    # Sized for the whole video when it starts.
    their_bytes = (
        2 * CONFIG.dim * 4 * CONFIG.num_layers * SCALE.geometry.tokens_per_frame * SCALE.geometry.latent_frames
    )

    def note(name: str, block: int, seconds: float, size: int) -> None:
        for key, value in (("blocks", block), ("seconds", seconds), ("cache_bytes", size)):
            runs[name][key].append(value)

    def after_step(_) -> None:
        clock.steps += 1
        block, rest = divmod(clock.steps, steps)
        if rest:
            return
        if block in timed:
            note(THEIRS, block, time.process_time() - clock.started, their_bytes)
            for name, run in ours.items():
                size = run.block(block)
                note(name, block, run.seconds, size)
            graphs.append(compiled_graphs())
        clock.started = time.process_time()

    geometry = SCALE.geometry
    _, channels, _, height, width = geometry.block_shape
    noise = torch.randn(1, channels, geometry.latent_frames, height, width)
    sigmas = torch.tensor([*next(iter(ours.values())).stream.denoising.schedule.sigmas, 0.0])
    extra = {"model_options": {"transformer_options": {}}, "seed": 0}
    context = torch.randn(1, 512, CONFIG.text_dim, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        sample_ar_video(
            TheirDenoiser(net, context),
            noise,
            sigmas,
            extra,
            after_step,
            disable=True,
            num_frame_per_block=FRAMES_PER_BLOCK,
        )
    settings = {
        "width": CONFIG.dim,
        "layers": CONFIG.num_layers,
        "tokens per frame": geometry.tokens_per_frame,
        "frames per block": FRAMES_PER_BLOCK,
        "steps": steps,
        "torch": torch.__version__,
    }
    print(json.dumps({"settings": settings, "samplers": runs, "compiled_graphs": graphs}))


main()
