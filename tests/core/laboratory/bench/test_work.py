"""Operations by formula against operations counted, and the known sizes of the 1.3B."""

from __future__ import annotations

import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from packforcing_core.attention import sdpa
from packforcing_core.laboratory.bench.bare import StaticHistory
from packforcing_core.laboratory.bench.clock import Laps, in_turns, p95, ratio
from packforcing_core.laboratory.bench.subject import SCALES
from packforcing_core.laboratory.bench.work import Work, commit_work, decode_work, pass_work
from packforcing_core.model.causal import CausalWan
from packforcing_core.rope import GridRope
from packforcing_core.sampler.denoising import frame_timesteps
from tests.small import CONFIG, GRID, block_shape, small_context, small_net


def test_a_pass_of_the_1_3b_has_the_known_work():
    config = SCALES["1.3B"].config
    work = pass_work(config, 6240, 27872)
    print(f"linear {work.linear / 1e12:.2f}, attention {work.attention / 1e12:.2f} TFLOP")
    assert work.linear == pytest.approx(15.6e12, rel=0.01)
    assert work.attention == pytest.approx((32.1 + 0.6) * 1e12, rel=0.01)
    block = work.plus(work, 3).plus(commit_work(config, 6240, 27872))
    assert 0.96 * 241.3e12 < sum(block) < 241.3e12


def test_the_formulas_equal_what_is_counted():
    asked = []

    def counted(q, k, v):
        asked.append((q.shape[1], k.shape[1]))
        return sdpa(q, k, v)

    model, tokens, attended = CausalWan(small_net(), CONFIG, attention=counted), 3 * GRID[0] * GRID[1], 40
    keys = torch.randn(2, 1, attended, CONFIG.num_heads, CONFIG.head_dim)
    history = StaticHistory(*keys, GridRope(CONFIG.head_dim, GRID).frames(range(3)), counted)
    text = model.encode_text(small_context(tokens=CONFIG.text_len))
    latents = torch.randn(block_shape(3))
    for run, formula in ((model.flow, pass_work), (model.commit, commit_work)):
        asked.clear()
        with FlopCounterMode(display=False) as counter:
            run(latents, frame_timesteps(0.0, latents), text, history)
        attention = sum(4 * q * k for q, k in asked) * CONFIG.dim
        linear = counter.get_total_flops()  # PyTorch's counter does not know the CPU's attention kernel.
        work = formula(CONFIG, tokens, attended)
        print(f"{formula.__name__}: attention {attention:,} of {work.attention:,}; rest {linear:,} of {work.linear:,}")
        assert attention == work.attention
        # Besides: the time's embeddings of three frames, the patch embedding, and a whole pass's head.
        times = 2 * 3 * CONFIG.dim * (CONFIG.freq_dim + 7 * CONFIG.dim)
        patches = 2 * tokens * CONFIG.dim * 64 * (2 if run == model.flow else 1)
        assert linear == work.linear + times + patches


def test_the_decoders_work_is_the_known_one():
    scale = SCALES["1.3B"]
    work = decode_work(scale.vae, scale.height, scale.width, 4)
    print(f"{work.conv / 1e12:.1f} TFLOP for 16 frames")
    assert work.conv == pytest.approx(54.2e12, rel=0.02)


def test_a_floor_adds_the_kinds_that_occur():
    assert Work(linear=6.0, attention=8.0).floor_seconds({"linear": 2.0, "attention": 4.0}) == 5.0


def test_turns_begin_with_another_run_each_round():
    ran = []
    runs = {name: lambda name=name: ran.append(name) for name in "abc"}
    seconds = in_turns(runs, 3, torch.device("cpu"), warm_up=0)
    assert "".join(ran) == "abc" + "bca" + "cab"
    assert {name: len(s) for name, s in seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_a_ratio_is_the_median_of_the_rounds():
    assert ratio([2.0, 30.0, 9.0], [1.0, 10.0, 3.0]) == 3.0
    assert p95([float(n) for n in range(1, 101)]) == 95.0
    assert p95([7.0]) == 7.0


def test_laps_add_up_by_name():
    laps = Laps(torch.device("cpu"))
    for name in ("a", "b", "a"):
        laps.mark(name)
    assert set(laps.seconds()) == {"a", "b"}
    assert all(seconds >= 0 for seconds in laps.seconds().values())


def test_a_cpu_with_one_thread_counts_its_own_work_alone(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    idle = in_turns({"idle": lambda: time.sleep(0.05)}, 2, torch.device("cpu"), warm_up=0)["idle"]
    print(f"50 ms of sleep counted as {[round(1e3 * s, 2) for s in idle]} ms")
    assert max(idle) < 0.04
