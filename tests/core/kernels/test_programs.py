"""The Triton programs: run by Triton's interpreter on the CPU against their plain twins, and compiled ahead of time."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
ROOT = Path(__file__).resolve().parents[3]


def run(script: str, **environment: str) -> str:
    """What a process of its own prints: whether Triton interprets is decided when it is imported."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


INTERPRETED = """
import torch
from packforcing_core.kernels import fast, plain
from packforcing_core.rope import GridRope

torch.manual_seed(0)
for dtype, unit in ((torch.float32, 1e-6), (torch.bfloat16, 2**-7)):  # The interpreter rounds toward zero.
    rope = GridRope(64, (3, 5))
    for rotation in (rope.frames([3, 9]), rope.time([7])):
        x = torch.randn(2, 30, 3, 64).to(dtype)
        buffer = torch.zeros(2, 41, 3, 64, dtype=dtype)
        out = buffer[:, 7:37]
        fast._rotate(x, torch.view_as_real(rotation), out)
        exact = plain.rotated(x.double().float(), rotation)
        worst = ((out.float() - exact).abs() / (1 + exact.abs())).max().item()
        print(f"rotate {dtype} {worst:.1e}")
        assert worst <= unit and not buffer[:, :7].any() and not buffer[:, 37:].any()
        fast._rotate(x, torch.view_as_real(rotation), x)
        assert torch.equal(x, out)
    for width in (24, 96):
        tokens, update, gains = (torch.randn(1, 2, count, width).to(dtype) for count in (5, 5, 6))
        for base, gain in ((tokens, gains[:, :, 1:2]), (gains[:, :, 2:3], gains[:, :, 5:])):
            out = torch.zeros_like(update)
            fast._add_scaled(base, update, gain, out)
            exact = plain.add_scaled(base.double(), update.double(), gain.double())
            worst = ((out.double() - exact).abs() / (1 + exact.abs())).max().item()
            print(f"add_scaled {width} {dtype} {worst:.1e}")
            assert worst <= unit
    for width in (8, 96, 192):
        video = torch.randn(1, width, 3, 4, 5).to(dtype).contiguous(memory_format=torch.channels_last_3d)
        video[:, :, 1, 2, 3] = 0
        gamma = torch.randn(width, 1, 1, 1).to(dtype)
        padded = torch.zeros(1, width, 5, 4, 5, dtype=dtype).contiguous(memory_format=torch.channels_last_3d)
        tail = torch.zeros(1, width, 2, 4, 5, dtype=dtype).contiguous(memory_format=torch.channels_last_3d)
        bias, other = torch.randn(width).to(dtype), torch.randn_like(video)
        for lacks in (None, bias):
            fast._norm_silu(video, lacks, gamma, padded[:, :, 2:], tail)
            added = 0 if lacks is None else lacks.double().view(-1, 1, 1, 1)
            exact = plain.norm_silu(video.double() + added, gamma.double())
            worst = ((padded[:, :, 2:].double() - exact).abs() / (1 + exact.abs())).max().item()
            print(f"norm_silu {width} {dtype} {worst:.1e}")
            assert worst <= unit and not padded[:, :, :2].any() and torch.equal(tail, padded[:, :, 3:])
        summed = video.clone()
        fast._add_biased(summed, bias, other)
        exact = plain.add_biased(video.double(), bias.double(), other.double())
        worst = ((summed.double() - exact).abs() / (1 + exact.abs())).max().item()
        print(f"add_biased {width} {dtype} {worst:.1e}")
        assert worst <= unit and summed.is_contiguous(memory_format=torch.channels_last_3d)
        large = torch.full((1, width, 3, 8, 10), 7, dtype=dtype).contiguous(memory_format=torch.channels_last_3d)
        fast._doubled(video, large)
        assert torch.equal(large, plain.doubled(video))

for count, top in ((1, 1), (5, 2), (9, 4), (33, 8)):
    for trial in range(3):
        scores = torch.randint(0, 4, (count,)).float()  # With ties.
        blocks = torch.randperm(90)[:count].int()
        held = torch.cat((blocks[torch.randperm(count)[: top // 2]], torch.full((top - top // 2,), -1))).int()
        slots, wanted = torch.empty(3, top, dtype=torch.int32), plain.chosen_slots(scores, blocks, held)
        fast._chosen_slots(scores, blocks, held, slots)
        assert torch.equal(slots, wanted), (slots, wanted)
        for batch in (1, 2):
            bank = torch.randn(count, batch, 7, 3, 64).bfloat16()
            buffer = torch.zeros(batch, 5 + 7 * top, 3, 64).bfloat16()
            out = buffer[:, 5:].unflatten(1, (top, -1)).transpose(0, 1)
            fast._recall(bank, slots, held, out)
            rows = bank[slots[1].long()]
            rows[slots[0] == held] = 0  # Those are there already: they are not read again.
            assert torch.equal(out, rows) and not buffer[:, :5].any()
print("chosen_slots, recall 0")
"""


def test_interpreted_they_give_what_their_twins_give():
    print(run(INTERPRETED, TRITON_INTERPRET="1"))


TRIAL = """
import torch
from packforcing_core.kernels import fast

for name, launch in fast._LAUNCHES.items():
    fast._LIBRARY.impl(name, launch, "CPU")

def asked(*_):
    raise AssertionError("the trial asked whether the kernels serve")

fast.usable = fast.serves = asked
print(max(fast._differences(torch.device("cpu"))))
"""


def test_the_trial_of_a_device_runs_every_kernel_and_asks_nothing():
    worst = float(run(TRIAL, TRITON_INTERPRET="1"))
    print(f"largest difference {worst:.1e}")
    assert worst < 0.02


COMPILED = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from packforcing_core.kernels import programs

def built(kernel, kinds, constants, capability):
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else kinds[name] for name in names}
    source = ASTSource(kernel, signature=signature, constexprs=constants)
    return compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4}).asm["cubin"]

rotate = {name: "i32" for name in programs.rotate.arg_names}
rotate |= {"x": "*bf16", "out": "*bf16", "rotation": "*fp32"}
norm = {name: "*bf16" for name in programs.norm_silu.arg_names} | {"rows": "i32", "tail_rows": "i32"}
added = {name: "*bf16" for name in programs.add_biased.arg_names} | {"size": "i32"}
twice = {"x": "*bf16", "out": "*bf16", "columns": "i32"}
scaled = {name: "i32" for name in programs.add_scaled.arg_names}
scaled |= {name: "*bf16" for name in ("base", "x", "gain", "out")}
choice = {"scores": "*fp32", "blocks": "*i32", "held": "*i32", "out": "*i32", "count": "i32"}
copies = {name: "i32" for name in programs.recall.arg_names}
copies |= {"bank": "*bf16", "out": "*bf16", "slots": "*i32", "held": "*i32"}
for capability in (80, 86, 89, 90, 100, 120):
    one = built(programs.rotate, rotate, {"HEADS": 12, "DIM": 128, "ROWS": 4}, capability)
    two = built(programs.norm_silu, norm, {"BIASED": True, "WIDTH": 96, "COLUMNS": 128, "ROWS": 32}, capability)
    five = built(programs.add_biased, added, {"WIDTH": 96, "AT_ONCE": 4096}, capability)
    six = built(programs.doubled, twice, {"WIDTH": 192, "AT_ONCE": 4096}, capability)
    seven = built(programs.add_scaled, scaled, {"SHIFTS": True, "WIDTH": 1536, "AT_ONCE": 4096}, capability)
    three = built(programs.chosen_slots, choice, {"SLOTS": 4, "COLUMNS": 128}, capability)
    four = built(programs.recall, copies, {"AT_ONCE": 4096}, capability)
    print(capability, len(one), len(two), len(three), len(four), len(five), len(six), len(seven))
"""


def test_they_compile_for_every_architecture_from_ampere_on():
    assert run(COMPILED).split()[::8] == ["80", "86", "89", "90", "100", "120"]
