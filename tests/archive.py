"""The archive that the ComfyUI registry serves: the tracked files but those that .comfyignore names.

python -m tests.archive [FILE.zip]      builds it and says what it holds
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

PACK = Path(__file__).resolve().parents[1]


def is_checkout() -> bool:
    return shutil.which("git") is not None and (PACK / ".git").exists()


def git(*arguments: str) -> list[str]:
    # A checkout that another user owns, as in a container, is one all the same.
    command = ["git", "-c", "safe.directory=*", *arguments]
    return subprocess.run(command, cwd=PACK, capture_output=True, encoding="utf-8", check=True).stdout.splitlines()


def archive_names() -> list[str]:
    """What `comfy node pack` takes, as paths from the pack's folder."""
    left_out = set(git("ls-files", "--cached", "--ignored", "--exclude-from=.comfyignore"))
    return sorted(name for name in git("ls-files") if name not in left_out and (PACK / name).exists())


def build(path: Path) -> Path:
    """Writes the archive; the same files give the same bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in archive_names():
            packed.writestr(zipfile.ZipInfo(name), (PACK / name).read_bytes(), zipfile.ZIP_DEFLATED)
    return path


def unpack(folder: Path) -> None:
    """The pack as the registry's archive leaves it in `folder`."""
    archive = build(folder.with_suffix(".zip"))
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(folder)
    archive.unlink()


def main() -> None:
    path = build(Path(sys.argv[1] if len(sys.argv) > 1 else "comfyui-packforcing.zip"))
    names = archive_names()
    print(f"{path}: {len(names)} files, {path.stat().st_size / 1e6:.1f} MB")
    for room in sorted({name.split("/")[0] for name in names}):
        print(f"  {room}: {sum(name.split('/')[0] == room for name in names)}")


if __name__ == "__main__":
    main()
