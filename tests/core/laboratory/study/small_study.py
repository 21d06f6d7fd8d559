"""A subject as small as one can be: random weights, two steps a block, blocks of 4."""

from __future__ import annotations

from packforcing_core.cache.config import PackForcing, Window
from packforcing_core.laboratory.study.rows import POLICIES, Row
from packforcing_core.laboratory.study.subject import Subject
from tests.small import CONFIG, DENOISING, small_context, small_model
from tests.small_compressor import trained_high_res
from tests.vaes import TINY, random_vae

MEMORY = PackForcing(sink_frames=0, recent_frames=4, top_k_blocks=2, mid_span=1.0)
ROWS = (
    Row("window", POLICIES, Window(8)),
    Row("low", POLICIES, MEMORY, "low_res"),
    Row("high", POLICIES, MEMORY, "high_res"),
    Row("both", POLICIES, MEMORY, "both"),
)
SECONDS = 2.8  # 3 blocks: the last of them sees a compressed one


def load_small() -> Subject:
    model, vae, context = small_model(), random_vae(TINY), small_context()
    return Subject(
        model, vae, lambda prompts: context * len(prompts[0]), DENOISING, "small", trained_high_res(CONFIG.dim)
    )


def load_seldom() -> Subject:
    """For a worker that is to render nothing."""
    raise AssertionError("nothing was missing")
