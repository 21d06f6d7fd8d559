"""A model small enough for any CPU: Wan's own classes at a small size, with random weights from a fixed seed.

It shows that the whole road works, from prompt to film. It has learnt nothing, so what it renders is noise.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from .model.causal import CausalWan
from .model.config import WanConfig
from .model.ops import TorchOps
from .model.wan import Wan
from .vae.config import VAEConfig
from .vae.wan_vae import WanVAE

DEMO_CONFIG = WanConfig(dim=256, ffn_dim=512, num_layers=4, num_heads=2, text_dim=64, text_len=32)
DEMO_SIZE = (128, 64)
DEMO_SEED = 2603


def build_demo_model() -> CausalWan:
    """A causal Wan with random weights, on the CPU in float32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(DEMO_SEED)
        net = Wan(DEMO_CONFIG, TorchOps).eval().requires_grad_(False)
    return CausalWan(net, DEMO_CONFIG)


def build_demo_vae() -> WanVAE:
    """A small Wan VAE with random weights, on the CPU in float32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(DEMO_SEED)
        return (
            WanVAE(VAEConfig(encoder_dim=16, decoder_dim=16, num_res_blocks=1), TorchOps).eval().requires_grad_(False)
        )


def demo_context(prompt: str) -> Tensor:
    """[1, text_len, text_dim]: each word as a fixed random vector, zeros behind the last."""
    words = prompt.lower().split()[: DEMO_CONFIG.text_len]
    context = torch.zeros(1, DEMO_CONFIG.text_len, DEMO_CONFIG.text_dim)
    for position, word in enumerate(words):
        key = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=7).digest(), "little")
        context[0, position] = torch.randn(DEMO_CONFIG.text_dim, generator=torch.Generator().manual_seed(key))
    return context
