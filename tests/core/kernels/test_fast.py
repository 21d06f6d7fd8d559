"""Where the kernels serve, and that nothing is lost where they do not."""

from __future__ import annotations

import threading

import pytest
import torch

from packforcing_core.kernels import fast, plain
from packforcing_core.rope import GridRope, rotate, rotate_into


def test_they_serve_no_cpu_and_no_gradient(monkeypatch):
    assert not fast.usable(torch.device("cpu"))
    assert not fast.rotates(torch.zeros(1, 2, 3, 64))
    assert not fast.activates(torch.zeros(1, 8, 1, 4, 4))


def test_a_device_on_which_they_fail_is_served_by_the_twins_and_that_is_said(monkeypatch, caplog):
    monkeypatch.setattr(fast, "_verdicts", {})
    monkeypatch.setattr(fast, "_differences", lambda device: (_ for _ in ()).throw(OSError("no C compiler")))
    monkeypatch.setattr(fast.importlib.util, "find_spec", lambda name: object())
    assert not fast.usable(torch.device("cuda", 0))
    assert "without its Triton kernels: OSError: no C compiler" in caplog.text


def test_a_device_on_which_they_are_wrong_is_served_by_the_twins(monkeypatch, caplog):
    monkeypatch.setattr(fast, "_verdicts", {})
    monkeypatch.setattr(fast, "_differences", lambda device: [0.001, 0.3])
    monkeypatch.setattr(fast.importlib.util, "find_spec", lambda name: object())
    assert not fast.usable(torch.device("cuda", 0))
    assert "differ by 0.3" in caplog.text


def test_a_trial_that_asks_whether_they_serve_does_not_wait_for_itself(monkeypatch):
    device, asked = torch.device("cuda", 0), []
    monkeypatch.setattr(fast, "_verdicts", {})
    monkeypatch.setattr(fast, "_differences", lambda device: asked.append(fast.usable(device)) or [0.0])
    monkeypatch.setattr(fast.importlib.util, "find_spec", lambda name: object())
    answers = []
    thread = threading.Thread(target=lambda: answers.append(fast.usable(device)), daemon=True)
    thread.start()
    thread.join(timeout=10)
    assert (answers, asked) == ([True], [False])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_turning_into_a_buffer_is_turning(dtype):
    x, rotation = torch.randn(1, 12, 2, 64).to(dtype), GridRope(64, (2, 3)).frames([4, 9])
    buffer = torch.zeros(1, 20, 2, 64, dtype=dtype)
    rotate_into(buffer[:, 3:15], x, rotation)
    assert torch.equal(buffer[:, 3:15], rotate(x, rotation))
    assert not buffer[:, :3].any()
    assert not buffer[:, 15:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_norm_and_silu_into_a_buffer_are_norm_and_silu(dtype):
    x = torch.randn(2, 8, 3, 4, 5).to(dtype).contiguous(memory_format=torch.channels_last_3d)
    x[:, :, 1, 2, 3] = 0
    gamma, buffer = torch.randn(8, 1, 1, 1).to(dtype), torch.zeros(2, 8, 5, 4, 5, dtype=dtype)
    plain.norm_silu_into(x, gamma, buffer[:, :, 2:])
    difference = (buffer[:, :, 2:] - plain.norm_silu(x, gamma)).abs().max().item()
    print(f"max difference {difference:.1e}")
    assert difference <= (1e-6 if dtype == torch.float32 else 2**-7)
    assert not buffer[:, :, :2].any()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_this_gpu_they_give_what_their_twins_give():
    differences = fast._differences(torch.device("cuda"))
    print("largest differences", [f"{d:.1e}" for d in differences])
    assert max(differences) < 0.02
    assert fast.usable(torch.device("cuda", 0))
