"""Fast paths of a device against their plain twins: each check gives the largest difference that it saw, as text, and
raises AssertionError where that is too much. On a CPU most compare a thing with itself: a rehearsal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from statistics import median

import torch
from torch import Tensor

from packforcing_core.attention import BACKENDS, Capability, attention_named, sdpa, supported
from packforcing_core.cache.config import PackForcing
from packforcing_core.checkpoint.families import DEFAULT_FAMILY
from packforcing_core.geometry import VideoGeometry
from packforcing_core.kernels import fast
from packforcing_core.laboratory.bench.clock import seconds_of
from packforcing_core.laboratory.bench.subject import Scale, build_model, build_vae
from packforcing_core.model.config import WanConfig
from packforcing_core.recipe.recipe import Recipe
from packforcing_core.render.parts import build_compression, latent_events
from packforcing_core.render.writing import WrittenBlock, written_events
from packforcing_core.sampler.denoising import BlockDone, Denoising
from packforcing_core.vae import streaming
from packforcing_core.vae.config import VAEConfig
from packforcing_core.vae.streaming import StreamingDecoder, to_frames
from packforcing_core.vae.wan_vae import TOGETHER, WanVAE

CPU = torch.device("cpu")
SMALL = Scale(
    "small",
    WanConfig(dim=128, ffn_dim=256, num_layers=2, num_heads=2, text_dim=16, text_len=8, freq_dim=32),
    VAEConfig(encoder_dim=8, decoder_dim=8, num_res_blocks=1),
    width=96,
    height=64,
)


def numbers(device: torch.device, *sizes: int) -> Tensor:
    return torch.randn(sizes, generator=torch.Generator().manual_seed(0)).to(device)


def off(made: Tensor, exact: Tensor, limit: float) -> str:
    """The largest difference over the exact values' deviation."""
    made, exact = made.detach().cpu().double(), exact.detach().cpu().double()
    worst = ((made - exact).abs().max() / exact.std()).item()
    assert worst <= limit, f"off by {worst:.2e}, more than {limit:.0e}"
    return f"{worst:.1e}"


def kernels(device: torch.device) -> str:
    if device.type != "cuda":
        return "no kernels on this device"
    worst = max(fast._differences(device))
    assert worst < 0.02, worst
    return f"{worst:.1e}"


def attention(device: torch.device) -> str:
    half = torch.bfloat16 if device.type == "cuda" else torch.float32
    here = Capability.of(device, half, 128)
    q, k, v = (numbers(device, 1, length, 4, 128) for length in (512, 777, 777))
    exact, told = sdpa(q, k, v), []
    for name in supported(here, exact=False):
        made = attention_named(name, here)(q.to(half), k.to(half), v.to(half)).float()
        told.append(f"{name} {off(made, exact, 0.05 if BACKENDS[name].exact else 0.5)}")
    return ", ".join(told)


def vaes(device: torch.device, dtype: torch.dtype) -> tuple[WanVAE, WanVAE]:
    """The same small VAE on the CPU in float32 and on `device` in `dtype`."""
    plain = build_vae(SMALL, CPU, torch.float32)
    other = build_vae(SMALL, device, dtype)
    for target, source in zip(other.parameters(), plain.parameters(), strict=True):
        target.copy_(source)
    return plain, other


@torch.no_grad()
def decoder(device: torch.device) -> str:
    """Four latent frames a call and one a call, in float32 and in bfloat16, against the CPU's float32."""
    latents, told = numbers(CPU, 1, 16, 9, SMALL.height // 8, SMALL.width // 8), []
    for dtype, limit, tf32 in ((torch.float32, 1e-3, False), (torch.float32, 0.05, True), (torch.bfloat16, 0.2, True)):
        plain, other = vaes(device, dtype)
        exact = StreamingDecoder(plain).push(latents)
        for at_once in (1, TOGETHER):
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32):
                made = _decoded(other, latents, at_once)
            told.append(f"{dtype}{' with TF32' * tf32} {at_once} at once {off(made, exact, limit)}")
    return ", ".join(told)


def _decoded(vae: WanVAE, latents: Tensor, at_once: int) -> Tensor:
    chosen = streaming.frames_at_once
    streaming.frames_at_once = lambda *_: at_once
    try:
        decoder = StreamingDecoder(vae)
        return torch.cat([decoder.push(piece) for piece in latents.split(4, dim=2)], dim=2)
    finally:
        streaming.frames_at_once = chosen


def _latents(
    device: torch.device, policy: PackForcing, blocks: int = 8, compiled: bool = False
) -> tuple[Tensor, list[BlockDone]]:
    """A small render's latents, in float32."""
    model = build_model(SMALL, device, torch.float32, compiled=compiled)
    vae = build_vae(SMALL, device, torch.float32)
    plain_model, plain_vae = (build_model(SMALL, CPU, torch.float32), build_vae(SMALL, CPU, torch.float32))
    for mine, theirs in ((model.net, plain_model.net), (vae, plain_vae)):
        for target, source in zip(mine.parameters(), theirs.parameters(), strict=True):
            target.data.copy_(source)
    geometry = VideoGeometry(SMALL.width, SMALL.height, 16.0, 2, blocks)
    recipe = Recipe(geometry, policy, Denoising.of_family(replace(DEFAULT_FAMILY, frames_per_block=2)), 0)
    text = numbers(CPU, 1, SMALL.config.text_len, SMALL.config.text_dim)
    with torch.no_grad():
        events = latent_events(model, text, recipe, compression=build_compression(model, vae, None))
        done = [event for event in events if isinstance(event, BlockDone)]
    return torch.cat([each.latents for each in done], dim=2), done


def render(storage: str, int8: str = "none") -> Callable[[torch.device], str]:
    """A render with its bank there, against the same on the CPU in float32. All that is banked is selected: near ties
    between blocks decide nothing.
    """
    policy = PackForcing(
        sink_frames=2, recent_frames=2, top_k_blocks=8, bank_blocks=8, bank_storage=storage, kv_int8=int8
    )

    def check(device: torch.device) -> str:
        exact, _ = _latents(CPU, policy)
        made, _ = _latents(device, policy)
        return off(made, exact, 0.05)

    return check


def streams(device: torch.device) -> str:
    """Frames that are decoded beside the rollout on a stream of their own, against the same decoded afterwards."""
    _, done = _latents(device, PackForcing(sink_frames=2, recent_frames=2, top_k_blocks=2, bank_blocks=4))
    vae = build_vae(SMALL, device, torch.float32)
    bare = [replace(each, video=None) for each in done]

    class Discard:
        def write(self, frames) -> None: ...

        def end_segment(self) -> None: ...

    with torch.no_grad():
        film = written_events(iter(bare), StreamingDecoder(vae), Discard(), blocks_per_segment=2)
        beside = [event.frames for event in film if isinstance(event, WrittenBlock)]
        alone = StreamingDecoder(vae)
        after = [to_frames(alone.push(each.latents)) for each in bare]
    different = sum(int((a != b).sum()) for a, b in zip(beside, after, strict=True))
    assert different == 0, f"{different} values differ"
    return "every value the same"


def repeats(device: torch.device) -> str:
    """The same render twice gives the same bits: nothing races."""
    policy = PackForcing(sink_frames=2, recent_frames=2, top_k_blocks=2, bank_blocks=4)
    first, _ = _latents(device, policy)
    for _ in range(2):
        again, _ = _latents(device, policy)
        assert torch.equal(first, again), f"off by {(first - again).abs().max():.1e}"
    return "bit-equal three times"


def compiled(device: torch.device) -> str:
    """A render whose layers go through torch.compile, against the same without, on the same device."""
    policy = PackForcing(sink_frames=2, recent_frames=2, top_k_blocks=8, bank_blocks=8)
    plain, _ = _latents(device, policy)
    made, _ = _latents(device, policy, compiled=True)
    return off(made, plain, 0.05)


@torch.no_grad()
def first_calls(device: torch.device, dtype: torch.dtype, name: str) -> str:
    """What the first call of attention `name` costs at a length that it has not seen, beside the second."""
    attention = attention_named(name, Capability.of(device, dtype, 128))
    firsts, seconds, first = [], [], 20000 if device.type == "cuda" else 20
    for length in range(first, first + 5 * 182, 182):
        q, k, v = (numbers(device, 1, size, 12, 128).to(dtype) for size in (first // 4, length, length))
        firsts.append(seconds_of(lambda q=q, k=k, v=v: attention(q, k, v), device))
        seconds.append(seconds_of(lambda q=q, k=k, v=v: attention(q, k, v), device))
    chosen = torch._fused_sdp_choice(*(x.transpose(1, 2) for x in (q, k, v)))
    return f"{1000 * median(firsts):.1f} ms, then {1000 * median(seconds):.1f} ms (PyTorch's own choice: {chosen})"


@torch.no_grad()
def decode_times(vae: WanVAE, scale: Scale, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Seconds of a block's decode by frames at once and, on a GPU, with and without the kernels."""
    latents, found = numbers(device, 1, 16, 4, scale.height // 8, scale.width // 8), {}
    chosen, usable = streaming.frames_at_once, fast.usable
    try:
        for kernels_serve in (True, False) if device.type == "cuda" else (False,):
            fast.usable = usable if kernels_serve else lambda device: False
            for at_once in (TOGETHER, 1):
                streaming.frames_at_once = lambda *_, at_once=at_once: at_once
                decoder = StreamingDecoder(vae)
                for _ in range(2):
                    decoder.push(latents)
                times = sorted(seconds_of(lambda decoder=decoder: decoder.push(latents), device) for _ in range(3))
                name = f"{at_once} at once, {'Triton' if kernels_serve else 'plain'} kernels"
                found[name] = round(times[1], 5)
        fast.usable = usable
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=True):
            decoder = StreamingDecoder(vae)
            tuning = [seconds_of(lambda decoder=decoder: decoder.push(latents), device) for _ in range(6)]
        found["the last, with kernels that cuDNN chose by trying"] = round(median(tuning[3:]), 5)
        found["the trying"] = round(sum(tuning[:3]), 3)
    finally:
        streaming.frames_at_once, fast.usable = chosen, usable
    return found


CHECKS: dict[str, Callable[[torch.device], str]] = {
    "kernels": kernels,
    "attention": attention,
    "decoder": decoder,
    "render, bank in VRAM": render("vram"),
    "render, bank in system RAM": render("ram"),
    "render, bank in 8 bits": render("ram_int8"),
    "render, cache in 8 bits": render("ram", "all"),
    "decode beside": streams,
    "repeats": repeats,
}
