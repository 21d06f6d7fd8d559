"""Renders that are stopped, resumed, extended and retaken against renders that were not."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from packforcing_core.errors import PackForcingError
from packforcing_core.folder.files import FolderError
from packforcing_core.recipe.plan import plan_render
from packforcing_core.render.writing import WrittenBlock
from packforcing_core.sampler import rollout
from packforcing_core.sampler.denoising import BlockDone, StepDone
from packforcing_core.vae.decoders import push_block
from packforcing_core.video import SegmentedWriter, VideoFormat, read_frames, scan_video
from tests.small import CONFIG
from tests.survivor import FRAMES_PER_BLOCK, POLICIES, Small, difference, frames

pytestmark = pytest.mark.integration


def blocks_of(events: list, reused: bool) -> list[int]:
    return [event.block for event in events if isinstance(event, BlockDone) and event.reused == reused]


def stop_after(small: Small, root: Path, kind: type, block: int) -> None:
    """Leaves the render in the middle, as an exception from its consumer does."""
    for event in small.events(root):
        if isinstance(event, kind) and event.block == block:
            return


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> dict[str, Path]:
    """Each policy's unbroken render of 8 blocks, called film, by the folder it is in."""
    roots = {policy: tmp_path_factory.mktemp(policy) for policy in POLICIES}
    for policy, root in roots.items():
        Small(policy).run(root)
    return roots


@pytest.fixture(scope="module")
def unbroken(finished) -> dict[str, np.ndarray]:
    """The frames of each policy's unbroken render."""
    return {policy: frames(root) for policy, root in finished.items()}


@pytest.fixture(scope="module")
def lossless(tmp_path_factory) -> dict[str, Path]:
    """The same with a film that keeps every value, for the policies whose films are compared in part."""
    roots = {policy: tmp_path_factory.mktemp(policy) for policy in ("packforcing", "rolling", "selects again")}
    for policy, root in roots.items():
        Small(policy, codec="lossless").run(root)
    return roots


def copied(source: Path, root: Path) -> Path:
    """A render of another test's, to go on with."""
    return Path(shutil.copytree(source, root, dirs_exist_ok=True))


STOPS = [(StepDone, 0), (BlockDone, 1), (StepDone, 4), (WrittenBlock, 5), (BlockDone, 7)]


@pytest.mark.parametrize(
    ("policy", "kind", "block"),
    [("packforcing", *stop) for stop in STOPS]
    + [(policy, StepDone, 5) for policy in POLICIES if policy != "packforcing"],
)
def test_a_stopped_render_resumes_to_the_same_film(tmp_path, unbroken, policy, kind, block):
    stop_after(Small(policy), tmp_path, kind, block)
    events = Small(policy).run(tmp_path)
    made = blocks_of(events, reused=False)
    assert made == list(range(block + (kind is not StepDone), 8))[-len(made) :] if made else block >= 7
    worst = difference(frames(tmp_path), unbroken[policy])
    print(f"sampled again: {made}; largest difference {worst} of 255")
    assert worst == 0


def test_a_finished_render_is_filmed_again_without_sampling(tmp_path, finished, unbroken):
    copied(finished["packforcing"], tmp_path)
    (tmp_path / "film.mp4").unlink()
    events = Small().run(tmp_path)
    assert blocks_of(events, reused=False) == []
    assert not any(isinstance(event, StepDone) for event in events)
    assert difference(frames(tmp_path), unbroken["packforcing"]) == 0
    Small(codec="lossless").run(tmp_path)
    assert len(frames(tmp_path)) == len(unbroken["packforcing"])


def test_what_a_render_leaves_on_disk_is_planned(finished):
    for policy, root in finished.items():
        plan = plan_render(CONFIG, Small(policy).recipe(), torch.float32)
        files = [path for path in (root / "film").rglob("*") if path.is_file() and path.parent.name != "film"]
        size = sum(path.stat().st_size for path in files)
        text = 4 * (CONFIG.text_len - 8) * CONFIG.text_dim  # The small render's prompt has 8 tokens.
        print(f"{policy}: {size} bytes on disk, {plan.disk_bytes - text} planned")
        assert 0.3 * size < plan.disk_bytes - text < 2.5 * size
        assert size < plan.disk_bytes


@pytest.mark.parametrize("policy", ["packforcing", "rolling", "selects again"])
def test_an_extended_render_is_the_long_render_and_begins_with_the_short_one(tmp_path, lossless, policy):
    Small(policy, blocks=5, codec="lossless").run(tmp_path)
    short = frames(tmp_path)
    events = Small(policy, mode="extend", codec="lossless").run(tmp_path)
    assert blocks_of(events, reused=False) == [5, 6, 7]
    worst = difference(frames(tmp_path), frames(lossless[policy]))
    print(f"largest difference: {worst} of 255")
    assert worst == 0
    assert np.array_equal(frames(tmp_path)[: len(short)], short)


@pytest.mark.parametrize("policy", ["packforcing", "rolling"])
def test_a_retake_keeps_the_part_before_and_resumes_like_any_render(tmp_path, lossless, policy):
    whole, killed = (copied(lossless[policy], tmp_path / name) for name in ("whole", "killed"))
    before = frames(whole)
    retake = Small(policy, codec="lossless", mode="retake", retake_block=5, prompt=2, seed=7)
    events = retake.run(whole)
    assert blocks_of(events, reused=False) == [5, 6, 7]
    after = frames(whole)
    kept = 4 * 5 * FRAMES_PER_BLOCK - 3
    assert np.array_equal(after[:kept], before[:kept])
    changed = np.abs(after[kept:].astype(int) - before[kept:].astype(int)).mean()
    print(f"mean difference behind the retake {changed:.1f} of 255")
    assert changed > 1

    stop_after(retake, killed, BlockDone, 6)
    events = retake.run(killed)
    assert blocks_of(events, reused=False) == [7]
    assert np.array_equal(frames(killed), after)
    films = sorted((killed / "film" / "film").glob("*.growing.mp4"))
    assert len(films) == 2, "the first take keeps its film"
    assert np.array_equal(np.stack(list(read_frames(films[0]))), before)


@pytest.mark.parametrize("policy", ["packforcing", "window"])
def test_a_cut_leaves_the_video_before_it_resumes_and_is_taken_again(tmp_path, policy):
    cut, begins = Small(policy, turn="cut", codec="lossless"), 4 * 4 * FRAMES_PER_BLOCK - 3
    cut.run(tmp_path / "cut")
    Small(policy, codec="lossless").run(tmp_path / "plain")
    whole, plain = frames(tmp_path / "cut"), frames(tmp_path / "plain")
    assert np.array_equal(whole[:begins], plain[:begins])
    held = [np.array_equal(whole[begins], frame) for frame in whole[begins : begins + 5]]
    assert held == [True, True, True, True, False], "the scene's first frame is held for four"
    for block in (3, 6):
        stop_after(cut, tmp_path / f"{block}", WrittenBlock, block)
        cut.run(tmp_path / f"{block}")
        assert np.array_equal(frames(tmp_path / f"{block}"), whole)
    Small(policy, turn="cut", codec="lossless", mode="retake", retake_block=6, seed=8).run(tmp_path / "cut")
    again, kept = frames(tmp_path / "cut"), begins + 2 * 4 * FRAMES_PER_BLOCK
    assert np.array_equal(again[:kept], whole[:kept])
    assert not np.array_equal(again[kept:], whole[kept:])


@pytest.mark.parametrize(("turn", "from_block"), [("cut", 8), ("", 8)])
def test_a_resumed_render_decodes_no_block_twice_behind_a_cut_either(tmp_path, monkeypatch, turn, from_block):
    """The first blocks of every scene have no compressed tokens, and need none."""
    small = Small(blocks=11, turn=turn)
    stop_after(small, tmp_path, WrittenBlock, 8)
    decoded = []
    monkeypatch.setattr(rollout, "push_block", lambda *asked: decoded.append(1) or push_block(*asked))
    small.run(tmp_path)
    print(turn, len(decoded), "blocks decoded")
    assert len(decoded) <= 11 - from_block + 1


def test_a_retake_with_the_same_seed_and_prompt_is_another_try(tmp_path, finished, unbroken):
    copied(finished["packforcing"], tmp_path)
    Small(mode="retake", retake_block=4).run(tmp_path)
    assert not np.array_equal(frames(tmp_path)[-12:], unbroken["packforcing"][-12:])


def test_other_settings_are_refused_with_the_difference(tmp_path):
    Small(blocks=3).run(tmp_path)
    for changed, words in (
        (Small(blocks=3, seed=8), ["seed: the render has 7, now 8"]),
        (Small(blocks=3, prompt=5), ["prompt: another text than the render has"]),
        (Small(blocks=3, weights=1), ["model: not the one that the render was started with"]),
        (Small(blocks=4), ["seconds: the render has 2.06, now 2.81", "'extend' changes only the length"]),
        (Small("window", blocks=3), ["policy: the render has packforcing, now window"]),
        (Small(blocks=2, mode="extend"), ["can only make it longer"]),
        (Small(blocks=4, seed=8, mode="extend"), ["seed: the render has 7, now 8"]),
        (
            Small(blocks=9, mode="retake", retake_block=5),
            ["begins 1.50 s after what is rendered", "Begin it at least 1.50 s earlier"],
        ),
        (Small(blocks=3, mode="retake", retake_block=3), ["after the end of the video", "Begin it 0.75 s earlier"]),
        (Small(width=64, blocks=3, mode="retake", retake_block=1), ["width: the render has 48, now 64"]),
    ):
        with pytest.raises(FolderError) as refused:
            changed.open(tmp_path)
        print(refused.value)
        for word in words:
            assert word in str(refused.value)


def test_new_sets_the_old_render_aside(tmp_path):
    Small(blocks=2).run(tmp_path)
    Small(blocks=2, seed=8, mode="new").run(tmp_path)
    Small(blocks=2, seed=9, mode="new").run(tmp_path)
    folders = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert folders == ["film", "film.1", "film.2"]


def test_a_new_render_that_was_stopped_resumes_and_one_that_is_finished_is_set_aside(tmp_path, unbroken):
    new = Small(mode="new")
    stop_after(new, tmp_path, BlockDone, 4)
    events = new.run(tmp_path)
    assert blocks_of(events, reused=False) == [5, 6, 7]
    assert difference(frames(tmp_path), unbroken["packforcing"]) == 0
    events = new.run(tmp_path)
    assert blocks_of(events, reused=False) == list(range(8))
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["film", "film.1"]


def test_two_renders_with_one_output_both_leave_their_video(tmp_path):
    """The second is begun and finished while the first is at work."""
    first = Small(blocks=3).events(tmp_path, "one", output="same.mp4")
    next(first)
    *_, second = Small(blocks=3, seed=8).run(tmp_path, "two", output="same.mp4")
    *_, last = first
    assert (second.path.name, last.path.name) == ("same.mp4", "same-2.mp4")
    assert second.path.read_bytes() != last.path.read_bytes()


@pytest.mark.parametrize("mode", ["extend", "retake"])
def test_there_must_be_something_to_extend_or_retake(tmp_path, mode):
    with pytest.raises(FolderError, match="There is no render 'film'"):
        Small(mode=mode).open(tmp_path)


def test_a_render_that_is_being_worked_on_is_left_alone(tmp_path):
    events = Small().events(tmp_path)
    next(events)
    with pytest.raises(PackForcingError, match="is in use"):
        Small().open(tmp_path)
    events.close()
    Small().open(tmp_path)


def test_a_film_that_was_taken_away_or_damaged_is_made_again(tmp_path, unbroken):
    stop_after(Small(), tmp_path / "stopped", WrittenBlock, 5)
    for damage in ("removed", "overwritten", "cut"):
        root = copied(tmp_path / "stopped", tmp_path / damage)
        (film,) = (root / "film" / "film").glob("*.growing.mp4")
        assert len(scan_video(film).segments) >= 3
        if damage == "removed":
            film.unlink()
        else:
            film.write_bytes(b"no film" if damage == "overwritten" else film.read_bytes()[:3000])
        Small().run(root)
        assert difference(frames(root), unbroken["packforcing"]) == 0


def test_a_segment_that_an_interruption_closed_early_is_made_again_whole(tmp_path, finished, unbroken):
    """The latents may be further than the film: then its short segment is no sign that the clip is short."""
    copied(finished["packforcing"], tmp_path)
    (film,) = (tmp_path / "film" / "film").glob("*.growing.mp4")
    with SegmentedWriter(tmp_path / "film.mp4", 48, 32, VideoFormat("h264", fps=16), 1, film) as writer:
        writer.write(unbroken["packforcing"][21:26])
    assert [segment.frames for segment in scan_video(film).segments] == [21, 5]
    Small().run(tmp_path)
    assert difference(frames(tmp_path), unbroken["packforcing"]) == 0
