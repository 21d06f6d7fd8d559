"""The decoder where kernels serve: they are replaced by their plain twins, so that a CPU sees what is left to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from packforcing_core.kernels import fast, plain
from packforcing_core.vae import streaming
from packforcing_core.vae.streaming import StreamingDecoder
from tests.vaes import TINY, random_vae


@pytest.fixture
def calls(monkeypatch) -> Iterator[Counter]:
    """How often each kernel was called; they serve on the CPU meanwhile."""
    counted: Counter = Counter()

    def norm_silu_into(x: Tensor, bias: Tensor | None, gamma: Tensor, out: Tensor, tail: Tensor) -> None:
        counted["norm with a bias" if bias is not None else "norm"] += 1
        out.copy_(plain.norm_silu(x if bias is None else x + bias.view(-1, 1, 1, 1), gamma))
        tail.copy_(out[:, :, -tail.shape[2] :])

    def add_biased(x: Tensor, bias: Tensor, other: Tensor) -> None:
        counted["sum"] += 1
        plain.add_biased(x, bias, other)

    def doubled(x: Tensor, out: Tensor) -> None:
        counted["doubling"] += 1
        out.copy_(plain.doubled(x))

    library = torch.library.Library("packforcing", "IMPL")
    for kernel in (norm_silu_into, add_biased, doubled):
        library.impl(kernel.__name__, kernel, "CPU")
    # Convolutions of float64 on a CPU lose the layout that those of a GPU keep.
    monkeypatch.setattr(fast, "activates", lambda x: x.ndim == 5 and not torch.is_grad_enabled())
    yield counted
    library._destroy()


@pytest.mark.parametrize("at_once", [1, 4])
def test_what_is_left_to_the_kernels_is_done_by_them(at_once, request, monkeypatch):
    monkeypatch.setattr(streaming, "frames_at_once", lambda *_: at_once)
    vae = random_vae(TINY).double()  # In float32 a CPU computes small convolutions frame by frame.
    for name, weight in vae.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight)
    latents = torch.randn(1, 16, 9, 4, 6, dtype=torch.float64)

    def decoded() -> Tensor:
        decoder = StreamingDecoder(vae)
        return torch.cat([decoder.push(piece) for piece in latents.split(4, dim=2)], dim=2)

    exact = decoded()
    calls = request.getfixturevalue("calls")
    made = decoded()
    difference = ((made - exact).abs().max() / exact.std()).item()
    print(f"largest difference {difference:.1e}, {dict(calls)}")
    assert difference < 1e-5  # The decoder returns float32.
    assert min(calls[name] for name in ("norm", "norm with a bias", "sum", "doubling")) > 0
    assert calls["sum"] == calls["norm with a bias"]
