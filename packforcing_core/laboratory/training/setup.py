"""The settings that a stage is built from (a size, a folder and given files), and its job for the training loop.

One folder holds everything: `<stage>/` with state and log, `<stage>.safetensors` with the exported weights and
`<stage>-compressor.safetensors` with those of the compressor trained together with them, `latents/` with the encoded
clips, `text.safetensors` with the tables of the toy world's text encoder or, with videos, `unprompted.safetensors`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ...attention import Attention
from ...compressor.high_res import Fusion
from ...errors import PackForcingError
from ...rope import GridRope
from .attention import training_attention
from .data import LatentFolder
from .loop import Stage, Training
from .precision import training_precision
from .presets import Course, Size
from .word_tables import word_encoder

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Setup:
    """The settings of a stage. `steps` and `batch` None use those of the size. Files that are None are looked for in
    the folder. `fusion` None is that of the compressor to start from, "add" for a new one.
    """

    size: Size
    folder: Path
    steps: int | None = None
    batch: int | None = None
    seed: int = 0
    device: torch.device = CPU
    recompute: bool = False
    compiled: bool = False
    weights: Path | None = None
    compressor: Path | None = None
    teacher: Path | None = None
    critic: Path | None = None
    vae: Path | None = None
    text: Path | None = None
    fusion: Fusion | None = None

    def course(self, stage: str) -> Course:
        """Returns the stage's settings at this size. Raises PackForcingError if the size does not have the stage."""
        if stage not in self.size.courses:
            raise PackForcingError(
                f"At size {self.size.name} there is no stage '{stage}'; expected one of {', '.join(self.size.courses)}."
            )
        course = self.size.courses[stage]
        return replace(course, steps=self.steps or course.steps, batch=self.batch or course.batch)

    def batches(self, batch: int) -> LatentFolder:
        """Returns the clips in the folder `latents`. Prompts of the toy world are encoded on demand."""
        encode = None
        if self.size.vae:
            model = self.size.model
            encode = word_encoder(self.exported("text"), self.text, model.text_dim, model.text_len)
        return LatentFolder(self.folder / "latents", encode, batch, self.seed)

    @property
    def rope(self) -> GridRope:
        clips = self.size.clips
        return GridRope(self.size.model.head_dim, (clips.height // 16, clips.width // 16), self.device)

    @property
    def precision(self) -> torch.dtype:
        """The dtype of matrix products."""
        return training_precision(self.device)

    @property
    def attention(self) -> Attention:
        return training_attention(self.device)

    @property
    def empty_context(self) -> Tensor | None:
        """The unconditional text embedding [1, text_len, text_dim]; None for zeros, as in the toy world.

        Raises PackForcingError if the file with the text encoder's embedding of the empty prompt is missing.
        """
        if self.size.vae:
            return None
        path = self.exported("unprompted")
        if not path.exists():
            raise PackForcingError(
                f"{path} is missing, the text encoder's embedding of the empty prompt. `{self.command('latents')}` "
                "writes it, with --videos and --text-encoder; existing latents are kept."
            )
        return load_file(path)["context"].float()

    def exported(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def command(self, stage: str) -> str:
        """Returns the command line of another stage in this folder."""
        return f"packforcing train {stage} --folder {self.folder} --size {self.size.name}"


@dataclass(frozen=True)
class Job:
    """A stage, its number of steps, and the function that exports its results to the setup's folder.

    `begins` are the files that it starts from; `frozen` are further networks that take memory.
    """

    stage: Stage
    steps: int
    export: Callable[[Training], Sequence[Path]]
    begins: Sequence[Path] = ()
    frozen: Mapping[str, nn.Module] = field(default_factory=dict)
