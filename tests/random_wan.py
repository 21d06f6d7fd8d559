"""Wan's own classes at a small size, with random weights from a fixed seed: for tests that need no trained model."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from packforcing_core.model.causal import CausalWan
from packforcing_core.model.config import WanConfig
from packforcing_core.model.ops import TorchOps
from packforcing_core.model.wan import Wan
from packforcing_core.vae.config import VAEConfig
from packforcing_core.vae.wan_vae import WanVAE

RANDOM_CONFIG = WanConfig(dim=256, ffn_dim=512, num_layers=4, num_heads=2, text_dim=64, text_len=32)
SEED = 2603


def build_random_model() -> CausalWan:
    """A causal Wan with random weights, on the CPU in float32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        net = Wan(RANDOM_CONFIG, TorchOps).eval().requires_grad_(False)
    return CausalWan(net, RANDOM_CONFIG)


def build_random_vae() -> WanVAE:
    """A small Wan VAE with random weights, on the CPU in float32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return (
            WanVAE(VAEConfig(encoder_dim=16, decoder_dim=16, num_res_blocks=1), TorchOps).eval().requires_grad_(False)
        )


def word_context(prompt: str) -> Tensor:
    """[1, text_len, text_dim]: each word as a fixed random vector, zeros behind the last."""
    words = prompt.lower().split()[: RANDOM_CONFIG.text_len]
    context = torch.zeros(1, RANDOM_CONFIG.text_len, RANDOM_CONFIG.text_dim)
    for position, word in enumerate(words):
        key = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=7).digest(), "little")
        context[0, position] = torch.randn(RANDOM_CONFIG.text_dim, generator=torch.Generator().manual_seed(key))
    return context
