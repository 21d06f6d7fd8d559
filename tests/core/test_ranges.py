"""Numbers out of their range at every door: one error that names the widget, before anything is read or written."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packforcing_core import api
from packforcing_core.cli.jobs import parse_render, read_jobs
from packforcing_core.cli.main import main
from packforcing_core.errors import PackForcingError
from packforcing_core.ranges import RANGES, in_range

NAN, INF = math.nan, math.inf
TABLE = {
    "seed": (-1, 2**64, 10**30),
    "seconds": (0, -5, 36_000.1, NAN, INF),
    "width": (0, -16, 100, 8208, 10**30),
    "height": (8, 8193),
    "fps": (0, -1, 240.5, NAN),
    "frames_per_block": (0, -1, 65, 10**9),
    "timesteps": ([1000, 0], [1500], [NAN], [250, 1000]),
    "shift": (0, -1, 100.5, NAN, INF),
    "blend_seconds": (-1, 36_001, NAN, INF),
    "denoise": (0, -0.5, 1.01, NAN),
    "given_seconds": (0, -1, 1e9, NAN),
    "retake_from": (-1, 36_001, NAN, INF),
    "blocks_per_segment": (0, -1, 1001),
    "quality": (-1, 52, 10**9),
    "zoom": (0, -2, 17),
    "window_frames": (0, -1, 10**6),
    "top_k_blocks": (-1, 10**6),
}
"""Names of widgets and options, and what is beside their range."""
CASES = [(name, value) for name, values in TABLE.items() for value in values]
POLICIES = {"window_frames": "window", "top_k_blocks": "packforcing"}
PYTHON = {"quality": api.VideoFormat, "zoom": api.VideoFormat, "denoise": api.Start, "retake_from": api.Place}
PYTHON["blocks_per_segment"] = api.Place


def option(name, value) -> list[str]:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    policy = [f"--policy={POLICIES[name]}"] if name in POLICIES else []
    return [*policy, f"--{name.replace('_', '-')}={text}"]


@pytest.mark.parametrize(("name", "value"), [case for case in CASES if case[0] != "given_seconds"])
def test_python(name, value):
    given = {name: value}
    if name in ("blocks_per_segment", "retake_from"):
        given["path"] = Path("film.mp4")
    elif name in POLICIES:
        given = {"policy": POLICIES[name], "knobs": given}
    made_by = PYTHON.get(name, api.Settings)
    with pytest.raises(PackForcingError, match=name) as refused:
        made_by(**given)
    print(refused.value)
    assert "expected" in str(refused.value) or "must be" in str(refused.value)


@pytest.mark.parametrize(("name", "value"), CASES)
def test_the_command_line(tmp_path, monkeypatch, capsys, name, value):
    """No file is there: the number is refused before any is looked for."""
    monkeypatch.chdir(tmp_path)
    words = ["render", "--checkpoint=no.pt", "--vae=no.pt", "--prompt=a", "--text-encoder=no", *option(name, value)]
    assert main(words) == 1
    said = capsys.readouterr().err
    print(said)
    assert said.startswith("error: ")
    assert name in said
    assert "no.pt" not in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("given", ["line", "shared"])
@pytest.mark.parametrize(("name", "value"), CASES)
def test_a_list_of_jobs(tmp_path, name, value, given):
    """Refused with its line before the first job is begun."""
    bad = {name: value, **({"policy": POLICIES[name]} if name in POLICIES else {})}
    common = {"checkpoint": "c", "vae": "v", "prompt": "p", **(bad if given == "shared" else {})}
    jobs = [{"name": "good"}, {"name": "bad", **(bad if given == "line" else {})}]
    (tmp_path / "jobs.jsonl").write_text("\n".join(map(json.dumps, jobs)), encoding="utf-8")
    with pytest.raises(PackForcingError, match=name.replace("_", "[_-]")) as refused:
        read_jobs(tmp_path / "jobs.jsonl", tmp_path / "out", json.dumps(common))
    print(refused.value)
    assert f"line {1 if given == 'shared' else 2}: " in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["jobs.jsonl"]


@pytest.mark.parametrize(("option", "value"), [("workers", 0), ("workers", -2), ("attempts", 0), ("attempts", 10**9)])
def test_the_batch_itself(tmp_path, capsys, option, value):
    (tmp_path / "jobs.jsonl").write_text('{"checkpoint": "c", "vae": "v", "prompt": "p"}\n', encoding="utf-8")
    words = [str(tmp_path / "jobs.jsonl"), "--folder", str(tmp_path / "out"), "--engine", "local"]
    assert main(["batch", *words, f"--{option}={value}"]) == 1
    assert f"error: {option} is {value}; expected a whole number from 1 to" in capsys.readouterr().err


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("value", ["5", None, True, [5], 1j, "x" * 10**6])
def test_what_is_no_number_is_refused_in_one_short_line(name, value):
    with pytest.raises(PackForcingError, match=f"^{name} is .*; expected a (whole )?number") as refused:
        in_range(name, value)
    assert len(str(refused.value)) < 200
    assert "\n" not in str(refused.value)


@given(st.sampled_from(sorted(RANGES)), st.integers() | st.floats(width=64) | st.fractions())
def test_any_number_is_in_its_range_or_refused_with_it(name, value):
    allowed = RANGES[name]
    if allowed.holds(value):
        found = in_range(name, value)
        assert found == float(value) or found == value
        assert type(found) is (int if allowed.whole else float)
        assert allowed.least <= found <= allowed.most
    else:
        assert not (isinstance(value, int) and allowed.least < value <= allowed.most)
        with pytest.raises(PackForcingError, match=re.escape(str(allowed))):
            in_range(name, value)


def test_16_and_16_frames_per_second_are_one_render():
    one, other = (api.Settings(fps=fps, seconds=seconds) for fps, seconds in ((16, 30), (16.0, 30.0)))
    assert repr(one) == repr(other)


def test_switches_of_a_job_are_true_or_false(tmp_path):
    common = '{"checkpoint": "c", "vae": "v", "prompt": "p", "recache": true}'
    (tmp_path / "jobs.jsonl").write_text('{"name": "a"}\n{"name": "b", "recache": false}', encoding="utf-8")
    jobs = read_jobs(tmp_path / "jobs.jsonl", tmp_path / "out", common)
    assert [parse_render(job.arguments).recache for job in jobs] == [True, False]


def test_a_job_may_have_several_loras(tmp_path):
    common = '{"checkpoint": "c", "vae": "v", "prompt": "p"}'
    (tmp_path / "jobs.jsonl").write_text('{"lora": ["a.pt", "b.pt@0.5"]}\n{"lora": "c.pt"}', encoding="utf-8")
    jobs = read_jobs(tmp_path / "jobs.jsonl", tmp_path / "out", common)
    assert [parse_render(job.arguments).lora for job in jobs] == [["a.pt", "b.pt@0.5"], ["c.pt"]]
