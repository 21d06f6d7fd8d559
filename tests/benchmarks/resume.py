"""How long resuming takes against starting over: `python -m tests.benchmarks.resume [BLOCKS]`.

The miniature renders a film with the PackForcing memory; copies of its folder are cut back to what a crash after three
quarters of it leaves, and resumed. Times are of the processor, so that other work on the machine does not count.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from packforcing_core.cache.config import AUTO, PackForcing
from packforcing_core.folder.folder import open_render
from packforcing_core.geometry import VideoGeometry
from packforcing_core.miniature.load import FAMILY, SIZE, load_model, load_text, load_vae
from packforcing_core.recipe.recipe import Recipe
from packforcing_core.render.filming import FilmJob, filmed_render
from packforcing_core.render.parts import build_twins
from packforcing_core.render.recording import sampled_events, wanted_manifest
from packforcing_core.sampler.denoising import BlockDone, Denoising
from packforcing_core.video import VideoFormat


def render(root: Path, name: str, blocks: int, stop: int, snapshot_blocks: int) -> float:
    """Seconds of processor time until the film is there, or until block `stop` is."""
    model, vae, context = load_model(), load_vae(), load_text()(["a red circle bounces on a dark background"])
    geometry = VideoGeometry(*SIZE, 16.0, FAMILY.frames_per_block, blocks)
    policy = PackForcing(sink_frames=4, recent_frames=4, top_k_blocks=4, bank_blocks=16, mid_span=AUTO)
    recipe = Recipe(geometry, policy, Denoising.of_family(FAMILY), 0)
    started = time.process_time()
    wanted = wanted_manifest(recipe, {}, context, model.device)
    folder = open_render(root, name, "resume", wanted, context, geometry.block_shape)
    source = partial(sampled_events, model, recipe, folder, lambda: build_twins(model, vae, None), snapshot_blocks)
    job = FilmJob(root / f"{name}.mp4", VideoFormat(fps=16), 4, vae, "demo", True, snapshot_blocks)
    with torch.inference_mode():
        for event in filmed_render(folder, recipe, job, source):
            if isinstance(event, BlockDone) and event.block + 1 == stop:
                break
    return time.process_time() - started


def main(blocks: int) -> None:
    stop = blocks * 3 // 4 + 1
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        whole = render(root, "whole", blocks, blocks + 1, 8)
        print(f"start over: {blocks} blocks {whole:.1f} s")
        for name, snapshot_blocks in (("a state every 8 blocks", 8), ("replay only", 0)):
            render(root, f"cut {snapshot_blocks}", blocks, stop, snapshot_blocks)
            size = sum(f.stat().st_size for f in (root / f"cut {snapshot_blocks}" / "snapshots").glob("*.safetensors"))
            took = render(root, f"cut {snapshot_blocks}", blocks, blocks + 1, snapshot_blocks)
            left = whole * (blocks - stop) / blocks
            print(
                f"resume at block {stop}, {name}: {took:.1f} s, of which about {left:.1f} s are the blocks still to "
                f"make; going on itself {took - left:.1f} s; states on disk {size / 1e6:.1f} MB"
            )
        shutil.rmtree(root / "whole")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 40)
