"""Runs ComfyUI's own autoregressive sampler and ours in turn: `python grow.py WEIGHTS BLOCKS POLICY...`, in its folder.

Prints one JSON line with seconds and cache bytes per block. ComfyUI's sampler calls back after every denoising step;
when the last step of a block is done, each of ours renders one block inside the callback, off ComfyUI's clock.
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file

weights_file, blocks, policies = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, str(Path.cwd()))

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()  # the modules below read the options when they are imported

import comfy.ops  # noqa: E402
from comfy.k_diffusion.sampling import sample_ar_video  # noqa: E402
from comfy.ldm.wan.ar_model import CausalWanModel  # noqa: E402

from packforcing_core.cache.config import build_policy  # noqa: E402
from packforcing_core.compressor.compressor import Compressor  # noqa: E402
from packforcing_core.compressor.high_res import build_high_res  # noqa: E402
from packforcing_core.geometry import VideoGeometry  # noqa: E402
from packforcing_core.model.causal import CausalWan  # noqa: E402
from packforcing_core.model.config import WanConfig  # noqa: E402
from packforcing_core.render import Recipe, build_cache  # noqa: E402
from packforcing_core.sampler.noise import seeded_noise  # noqa: E402
from packforcing_core.sampler.rollout import BlockDone, Denoising, Twins, rollout  # noqa: E402
from packforcing_core.sampler.schedule import Schedule  # noqa: E402

WEIGHTS = load_file(weights_file)
CONFIG = WanConfig.from_state_dict(WEIGHTS)
FRAMES = 3
SCHEDULE = Schedule.warped((1000.0, 750.0, 500.0, 250.0), 5.0)
GEOMETRY = VideoGeometry(width=128, height=64, fps=16.0, frames_per_block=FRAMES, blocks=blocks)
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


class TheirDenoiser:
    """What ComfyUI's sampler calls: (noisy latents, sigma) -> clean latents."""

    def __init__(self, net: CausalWanModel, context: torch.Tensor):
        self.net, self.context = net, context
        self.inner_model = SimpleNamespace(
            inner_model=SimpleNamespace(diffusion_model=net, get_dtype=lambda: torch.float32)
        )

    def __call__(self, x, sigma, model_options, seed):
        options = model_options["transformer_options"]
        return x - sigma.view(-1, 1, 1, 1, 1) * self.net(x, 1000 * sigma, self.context, transformer_options=options)


def our_blocks(name: str, model: CausalWan, context: torch.Tensor) -> Iterator[int]:
    """Renders a block per `next`; yields the bytes of the cache."""
    recipe = Recipe(GEOMETRY, build_policy(name), Denoising(SCHEDULE), seed=0)
    cache = build_cache(model, recipe)
    twins = None
    if recipe.partitions.bank:
        high_res = build_high_res(CONFIG.dim).eval().requires_grad_(False)
        twins = Twins(Compressor(model, "high_res", high_res=high_res))
    noise = seeded_noise(0, GEOMETRY.block_shape)
    text = model.encode_text(context)
    for event in rollout(model, text, cache, noise, recipe.denoising, blocks, twins=twins):
        if isinstance(event, BlockDone):
            yield cache.nbytes + cache.host_nbytes


def main() -> None:
    net = their_net()
    context = torch.randn(1, 512, CONFIG.text_dim, generator=torch.Generator().manual_seed(0))
    model = CausalWan(net, CONFIG)
    ours = {name: our_blocks(name, model, context) for name in policies}
    runs = {name: {"seconds": [], "cache_bytes": []} for name in ("ComfyUI SamplerARVideo", *policies)}
    theirs = runs["ComfyUI SamplerARVideo"]
    clock = SimpleNamespace(started=time.perf_counter(), steps=0)
    # Sized for the whole video when it starts.
    row = 2 * CONFIG.dim * 4 * CONFIG.num_layers
    their_bytes = row * GEOMETRY.tokens_per_frame * GEOMETRY.latent_frames

    def after_step(_) -> None:
        clock.steps += 1
        if clock.steps % len(SCHEDULE):
            return
        theirs["seconds"].append(time.perf_counter() - clock.started)
        theirs["cache_bytes"].append(their_bytes)
        for name, run in ours.items():
            started = time.perf_counter()
            runs[name]["cache_bytes"].append(next(run))
            runs[name]["seconds"].append(time.perf_counter() - started)
        clock.started = time.perf_counter()

    _, channels, _, height, width = GEOMETRY.block_shape
    noise = torch.randn(1, channels, GEOMETRY.latent_frames, height, width)
    sigmas = torch.tensor([*SCHEDULE.sigmas, 0.0])
    extra = {"model_options": {"transformer_options": {}}, "seed": 0}
    with torch.inference_mode():
        sample_ar_video(
            TheirDenoiser(net, context), noise, sigmas, extra, after_step, disable=True, num_frame_per_block=FRAMES
        )
    settings = {
        "width": CONFIG.dim,
        "layers": CONFIG.num_layers,
        "tokens per frame": GEOMETRY.tokens_per_frame,
        "frames per block": FRAMES,
        "steps": len(SCHEDULE),
        "blocks": blocks,
        "torch": torch.__version__,
    }
    print(json.dumps({"settings": settings, "samplers": runs}))


main()
