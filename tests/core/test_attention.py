from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from packforcing_core import attention
from packforcing_core.attention import (
    BACKENDS,
    Capability,
    attention_named,
    cudnn_first,
    measured_order,
    sdpa,
    supported,
)
from packforcing_core.errors import PackForcingError
from tests.exactness import SHALLOW, steps_off


@pytest.mark.parametrize("head_dim", [64, 128])
def test_it_is_the_softmax_of_scaled_products_for_every_head_apart(head_dim):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 5, 3, head_dim, generator=generator)
    k, v = torch.randn(2, 2, 11, 3, head_dim, generator=generator)
    out = sdpa(q, k, v)
    worst = 0.0
    for batch in range(2):
        for head in range(3):
            scores = q[batch, :, head].double() @ k[batch, :, head].double().T / math.sqrt(head_dim)
            expected = scores.softmax(dim=1) @ v[batch, :, head].double()
            worst = max(worst, steps_off(out[batch, :, head], expected))
    print(f"{worst:.1f} rounding steps from float64")
    assert out.shape == q.shape
    assert worst < SHALLOW


def capability(**changes) -> Capability:
    packages = frozenset({"flash_attn", "flash_attn_interface", "sageattention"})
    return Capability("cuda", (9, 0), torch.bfloat16, 128, packages)._replace(**changes)


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({}, ("cudnn", "flash3", "flash2", "sdpa")),
        ({"packages": frozenset()}, ("cudnn", "sdpa")),
        ({"architecture": (8, 9)}, ("cudnn", "flash2", "sdpa")),
        ({"architecture": (10, 0)}, ("cudnn", "flash2", "sdpa")),
        ({"architecture": (7, 5)}, ("sdpa",)),
        ({"dtype": torch.float32}, ("sdpa",)),
        ({"head_dim": 130}, ("sdpa",)),
        ({"device_type": "cpu", "architecture": (0, 0)}, ("sdpa",)),
        ({"device_type": "mps", "architecture": (0, 0)}, ("sdpa",)),
    ],
)
def test_backends_are_those_that_the_device_can_run_preferred_first(changes, expected):
    assert supported(capability(**changes)) == expected


def test_kernels_of_fewer_bits_are_there_only_when_asked_for():
    assert "sage" not in supported(capability())
    assert supported(capability(), exact=False).index("sage") == 3
    assert "sage" not in supported(capability(architecture=(7, 5)), exact=False)


def test_a_backend_that_cannot_run_here_is_refused_by_name():
    here = Capability.of(torch.device("cpu"), torch.float32, 64)
    assert attention_named("auto", here) is sdpa
    with pytest.raises(PackForcingError, match=r"'cudnn' cannot run here.*expected one of sdpa or auto"):
        attention_named("cudnn", here)


@pytest.mark.parametrize(
    "changes, name",
    [
        ({}, "cudnn"),
        ({"architecture": (10, 0)}, "cudnn"),
        ({"architecture": (12, 0)}, "flash2"),
        ({"architecture": (8, 9)}, "flash2"),
        ({"architecture": (8, 9), "packages": frozenset()}, "sdpa"),
        ({"dtype": torch.float32}, "sdpa"),
        ({"device_type": "mps", "architecture": (0, 0)}, "sdpa"),
    ],
)
def test_cudnn_comes_first_where_pytorchs_own_ranking_is_slow(changes, name, monkeypatch):
    backends = {other: replace(backend, build=lambda other=other: other) for other, backend in BACKENDS.items()}
    monkeypatch.setattr(attention, "BACKENDS", backends)
    assert attention_named("auto", capability(**changes)) == name


def test_what_cudnn_refuses_the_next_takes():
    """A CPU has none of the fast kernels: the ranking ends with one that every device has."""
    q, k, v = torch.randn(3, 1, 5, 2, 64)
    assert torch.equal(cudnn_first(q, k, v), sdpa(q, k, v))


def test_the_measured_order_is_by_time_without_what_fails():
    times = {"a": 3.0, "b": 1.0, "d": 2.0}

    def seconds(name: str) -> float:
        if name not in times:
            raise RuntimeError("no kernel image")
        return times[name]

    assert measured_order(("a", "b", "c", "d"), seconds) == ("b", "d", "a")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_every_backend_of_this_gpu_equals_the_plain_one():
    here = Capability.of(torch.device("cuda"), torch.bfloat16, 128)
    generator = torch.Generator("cuda").manual_seed(0)
    q, k, v = (
        torch.randn(1, n, 4, 128, device="cuda", dtype=torch.bfloat16, generator=generator) for n in (512, 777, 777)
    )
    expected = sdpa(q.float(), k.float(), v.float())
    for name in supported(here, exact=False):
        difference = (attention_named(name, here)(q, k, v).float() - expected).abs().max().item()
        print(f"{name}: max difference {difference:.1e}")
        assert difference < (2e-2 if BACKENDS[name].exact else 1e-1)
