"""VBench's dimensions for videos of one's own, where the `vbench` package is installed and its weights are on disk."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

# What each dimension loads, relative to vbench's cache; it would otherwise begin to download.
WEIGHTS: Mapping[str, tuple[str, ...]] = {
    "subject_consistency": ("dino_model/dino_vitbase16_pretrain.pth", "dino_model/facebookresearch_dino_main"),
    "background_consistency": ("clip_model/ViT-B-32.pt",),
    "motion_smoothness": ("amt_model/amt-s.pth",),
    "dynamic_degree": ("raft_model/models/raft-things.pth",),
    "aesthetic_quality": ("clip_model/ViT-L-14.pt", "aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth"),
    "imaging_quality": ("pyiqa_model/musiq_spaq_ckpt-358bb6af.pth",),
}


def cache_folder() -> Path:
    """Where vbench keeps its weights."""
    return Path(os.environ.get("VBENCH_CACHE_DIR") or Path.home() / ".cache" / "vbench")


def available_dimensions(cache: Path | None = None) -> tuple[list[str], str]:
    """The dimensions that can be measured here, and a sentence on those that cannot ("" where all can)."""
    if importlib.util.find_spec("vbench") is None:
        return [], "VBench was not measured: the package `vbench` is not installed (pip install vbench)."
    cache = cache or cache_folder()
    absent = {name: [file for file in files if not (cache / file).exists()] for name, files in WEIGHTS.items()}
    lacking = [f"{name} ({', '.join(files)})" for name, files in absent.items() if files]
    said = f"VBench: not measured for want of weights in {cache}: {'; '.join(lacking)}." if lacking else ""
    return [name for name, files in absent.items() if not files], said


def vbench_scores(path: Path, dimensions: Sequence[str], device: str = "cpu") -> dict[str, float]:
    """The dimensions of a film, by vbench itself."""
    import vbench

    with TemporaryDirectory() as folder:
        known = Path(vbench.__file__).with_name("VBench_full_info.json")
        bench = vbench.VBench(device, str(known), folder)
        bench.evaluate(
            videos_path=str(path.absolute()),
            name="film",
            dimension_list=list(dimensions),
            local=True,
            mode="custom_input",
        )
        results = json.loads((Path(folder) / "film_eval_results.json").read_text(encoding="utf-8"))
    return {name: float(results[name][0]) for name in dimensions}
