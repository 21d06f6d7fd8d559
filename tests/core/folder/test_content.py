"""A text or start that was computed a little differently is the render's own; another one is named and refused."""

from __future__ import annotations

import pytest
import torch

from packforcing_core.folder.content import Content, name_of
from packforcing_core.folder.files import FolderError
from packforcing_core.folder.folder import RenderFolder, open_render
from packforcing_core.folder.manifest import Manifest, Take
from packforcing_core.sampler.denoising import BlockDone
from packforcing_core.text.script import Cue, Script

SHAPE = (1, 16, 3, 4, 6)
GENERATOR = torch.Generator().manual_seed(0)
SEA, STORM = (torch.randn(1, 8, 32, generator=GENERATOR) for _ in range(2))
START = torch.randn(SHAPE, generator=GENERATOR)


def opened(root, content: Content, mode="resume", blocks: int = 6) -> RenderFolder:
    take = Take(0, 7, name_of(content.script), content.words)
    wanted = Manifest({"fps": 16.0, "frames_per_block": 3}, blocks, (take,))
    return open_render(root, "sea", mode, wanted, content, SHAPE)


def rounded(tensor: torch.Tensor) -> torch.Tensor:
    """As another processor has it."""
    return tensor.bfloat16().float()


def test_a_text_and_a_start_of_another_processor_are_replaced_by_the_stored_ones_with_a_note(tmp_path):
    opened(tmp_path, Content(Script.of(SEA), "the sea", START))
    again = opened(tmp_path, Content(Script.of(rounded(SEA)), "the sea", rounded(START)))
    print("\n".join(again.notes))
    assert len(again.notes) == 2
    assert all("slightly different" in note for note in again.notes)
    assert torch.equal(again.script(0).cues[0].context, SEA)
    assert torch.equal(again.content.script.cues[0].context, SEA)
    assert torch.equal(again.content.start, START)
    assert opened(tmp_path, Content(Script.of(SEA), "the sea", START)).notes == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Content(Script.of(STORM), "the storm", START), "prompt: the render has 'the sea', now 'the storm'"),
        (Content(Script.of(rounded(SEA)), "a sea", START), "prompt: the render has 'the sea', now 'a sea'"),
        (Content(Script.of(STORM), "", START), "prompt: another text than 'the sea'"),
        (Content(Script.of(SEA), "the sea", -START), "start: another image or video"),
        (Content(Script((Cue(0, SEA), Cue(3, STORM))), "", START), "prompt: it changes at other times"),
    ],
)
def test_what_really_differs_is_named_in_the_users_words(tmp_path, content, message):
    opened(tmp_path, Content(Script.of(SEA), "the sea", START))
    with pytest.raises(FolderError, match=message) as refused:
        opened(tmp_path, content)
    print(refused.value)
    assert not any(len(word) == 32 for word in str(refused.value).split()), "a hash tells nobody anything"


def test_an_extension_may_bring_prompts_behind_what_is_finished_and_no_others(tmp_path):
    folder = opened(tmp_path, Content(Script.of(SEA), "the sea"), blocks=3)
    for block in range(3):
        folder.blocks.save(BlockDone(block, torch.zeros(SHAPE)))
    behind = Content(Script((Cue(0, rounded(SEA)), Cue(4, STORM))), "[0s] the sea [3s] the storm")
    within = Content(Script((Cue(0, SEA), Cue(2, STORM))), "[0s] the sea [1s] the storm")
    with pytest.raises(FolderError, match="prompt: the render has 'the sea'"):
        opened(tmp_path, within, "extend")
    longer = opened(tmp_path, behind, "extend")
    assert (longer.manifest.blocks, longer.known_blocks, longer.missing_blocks()) == (6, 3, [3, 4, 5])
    assert [cue.first_block for cue in longer.script(0).cues] == [0, 4]
