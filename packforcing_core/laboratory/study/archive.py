"""All results of a study in one small file that can be shipped; the page can be drawn from it again."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterable
from pathlib import Path

from ...errors import PackForcingError
from .folder import Job, StudyFolder

SETTINGS, COMPRESSOR, RESULTS = "settings", "compressor", "results"
NOT_KEPT = ("pictures",)
"""The contact sheet's, which are most of a video's result."""
LARGEST = 64 << 20  # bytes of an archive, unpacked


def pack(folder: StudyFolder, jobs: Iterable[Job], path: Path) -> int:
    """Writes the existing results of `jobs` to `path`; returns their number."""
    found = [result for job in jobs if (result := folder.read(job))]
    kept = [{name: value for name, value in result.items() if name not in NOT_KEPT} for result in found]
    told = {SETTINGS: dict(folder.settings), COMPRESSOR: folder.compressor, RESULTS: kept}
    path.write_bytes(lzma.compress(json.dumps(told, separators=(",", ":")).encode(), preset=9))
    return len(kept)


def unpack(folder: StudyFolder, jobs: Iterable[Job], path: Path) -> int:
    """Adds results from the archive to an open folder, for those `jobs` that are missing there; returns their number.

    Raises PackForcingError for a file that is not an archive, or has other settings or another compressor.
    """
    try:
        with lzma.open(path) as file:
            told = json.loads(file.read(LARGEST))
        settings, compressor, results = (told[name] for name in (SETTINGS, COMPRESSOR, RESULTS))
    except (OSError, EOFError, lzma.LZMAError, ValueError, KeyError, TypeError) as error:
        raise PackForcingError(f"{path} is not an archive of a study ({error!r}).") from error
    if settings != dict(folder.settings) or compressor != folder.compressor:
        raise PackForcingError(
            f"{path} holds results of {settings} with compressor {compressor or 'none'}, but this is a study of "
            f"{dict(folder.settings)} with {folder.compressor or 'none'}."
        )
    by_key = {(found["row"], found["key"]): found for found in results}
    missing = [job for job in folder.missing(list(jobs)) if (job.row.name, folder.key(job)) in by_key]
    for job in missing:
        folder.write(job, by_key[job.row.name, folder.key(job)])
    return len(missing)
