"""Scores of pretrained models in a local folder: CLIP (does the video match its prompt?), CLIP and DINO (is it
consistent?).

Nothing is downloaded. The folder holds models saved by transformers' `save_pretrained`, directly or in subfolders.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import PackForcingError
from .scientific import library

WINDOW_SECONDS = 10.0
MODEL_TYPES = {"clip": "clip", "dinov2": "dino", "dinov2_with_registers": "dino", "vit": "dino"}
"""From the `model_type` in config.json to its use here. The DINO of 2021 has the type of a plain ViT."""
BATCH = 16


@dataclass(frozen=True)
class ModelScores:
    """`clip_windows`: 100 x cosine similarity of image and prompt, averaged over each WINDOW_SECONDS; empty without a
    prompt or without CLIP. The consistencies, 0..1, are None if their model is missing. A consistency is the mean
    cosine similarity of the images with the first and with the previous image, as VBench defines subject (DINO) and
    background (CLIP) consistency, but on images sampled at a fixed rate instead of on every frame.
    """

    clip_windows: tuple[float, ...] = ()
    clip_consistency: float | None = None
    dino_consistency: float | None = None

    @property
    def clip_score(self) -> float | None:
        return float(np.mean(self.clip_windows)) if self.clip_windows else None

    def as_dict(self) -> dict:
        return {
            "clip_score": self.clip_score,
            "clip_windows": list(self.clip_windows),
            "clip_consistency": self.clip_consistency,
            "dino_consistency": self.dino_consistency,
        }


class Models:
    """The models of a folder: `Models.load(folder).score(pictures, seconds, prompt)`."""

    def __init__(self, found: dict[str, Path]):
        transformers = library("transformers", "transformers", "A score of CLIP or DINO")
        self.names = {kind: path.name for kind, path in found.items()}
        self._models = {
            kind: transformers.AutoModel.from_pretrained(path, local_files_only=True).eval()
            for kind, path in found.items()
        }
        self._images = {
            kind: transformers.AutoImageProcessor.from_pretrained(path, local_files_only=True)
            for kind, path in found.items()
        }
        clip = found.get("clip")
        self._words: Any = transformers.AutoTokenizer.from_pretrained(clip, local_files_only=True) if clip else None

    @classmethod
    def load(cls, folder: Path | str) -> Models:
        """Loads the models. Raises PackForcingError if the folder holds no model of MODEL_TYPES, or one that cannot be
        loaded.
        """
        found = find_models(Path(folder))
        try:
            return cls(found)
        except (OSError, ValueError) as error:
            raise PackForcingError(f"The models of {folder} cannot be loaded: {error}") from error

    def score(self, pictures: Sequence[np.ndarray], seconds: Sequence[float], prompt: str | None) -> ModelScores:
        """Scores images uint8 [H, W, 3], taken at `seconds` of a video."""
        features = {kind: self._look(kind, pictures) for kind in self._models}
        consistency = {kind: consistency_of(found) for kind, found in features.items()}
        windows: tuple[float, ...] = ()
        if prompt and "clip" in features:
            cosines = 100 * (features["clip"] @ self._read(prompt)).numpy()
            numbers = (np.asarray(seconds) / WINDOW_SECONDS).astype(int)
            windows = tuple(float(cosines[numbers == number].mean()) for number in np.unique(numbers))
        return ModelScores(windows, consistency.get("clip"), consistency.get("dino"))

    @torch.inference_mode()
    def _look(self, kind: str, pictures: Sequence[np.ndarray]) -> torch.Tensor:
        """Returns normalised features [N, D]: CLIP's image embeddings, or DINO's class token."""
        found = []
        for start in range(0, len(pictures), BATCH):
            pixels = self._images[kind](images=list(pictures[start : start + BATCH]), return_tensors="pt").pixel_values
            model = self._models[kind]
            if kind == "clip":
                found.append(model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output))
            else:
                found.append(model(pixel_values=pixels).last_hidden_state[:, 0])
        return torch.nn.functional.normalize(torch.cat(found).float(), dim=-1)

    @torch.inference_mode()
    def _read(self, prompt: str) -> torch.Tensor:
        """Returns the normalised text embedding [D] of a prompt, truncated to CLIP's maximum length."""
        model = self._models["clip"]
        longest = model.config.text_config.max_position_embeddings
        words = self._words([prompt], return_tensors="pt", truncation=True, max_length=longest)
        text = model.text_model(input_ids=words.input_ids, attention_mask=words.attention_mask).pooler_output
        return torch.nn.functional.normalize(model.text_projection(text).float(), dim=-1)[0]


def find_models(folder: Path) -> dict[str, Path]:
    """Returns the folders of a CLIP and of a DINO model in `folder` under the keys "clip" and "dino", recognised by
    their config.json. Of several of one type it takes the first by name. Raises PackForcingError if there are none.
    """
    if not folder.is_dir():
        raise PackForcingError(f"The folder of models {folder} does not exist; expected one with CLIP or DINO in it.")
    found: dict[str, Path] = {}
    for config in sorted([*folder.glob("config.json"), *folder.glob("*/config.json")]):
        kind = MODEL_TYPES.get(json.loads(config.read_text(encoding="utf-8")).get("model_type"))
        if kind:
            found.setdefault(kind, config.parent)
    if not found:
        raise PackForcingError(
            f"The folder {folder} holds no model that is known; expected a config.json of the model type "
            f"{', '.join(MODEL_TYPES)} in it or one folder down, as transformers' save_pretrained writes it."
        )
    return found


def consistency_of(features: torch.Tensor) -> float | None:
    """Mean cosine similarity of normalised features [N, D] with the first and with the previous one; None if N < 2."""
    if len(features) < 2:
        return None
    to_first = (features[1:] @ features[0]).clamp(min=0)
    to_previous = (features[1:] * features[:-1]).sum(-1).clamp(min=0)
    return float((to_first + to_previous).mean() / 2)
