"""Runs imageio-ffmpeg's ffmpeg without ever blocking on a full pipe."""

from __future__ import annotations

import io
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from ..errors import PackForcingError

_LAST_WORDS = 12
# 7.0, which imageio-ffmpeg 0.6 and 0.7 include, silently loses Theora frames and crashes on MPEG-TS.
_OLDEST = (7, 1)
# ffmpeg must not get the terminal's Ctrl-C: it would end the segment before the last frames.
_DETACHED: dict[str, Any]
if sys.platform == "win32":
    _DETACHED = {"creationflags": subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP}
else:
    _DETACHED = {"start_new_session": True}


class FfmpegError(PackForcingError):
    """ffmpeg is missing, was killed, or failed; the message ends with ffmpeg's last lines."""


def video_url(path: Path) -> str:
    """The path in a form that ffmpeg never reads as an option or another protocol."""
    return f"file:{path.absolute()}"


def start_ffmpeg(arguments: Sequence[str], *, reads_stdin: bool = False) -> subprocess.Popen[bytes]:
    """Starts ffmpeg with stdout and stderr piped (and stdin too if `reads_stdin`). Raises FfmpegError."""
    executable = _executable()
    try:
        return subprocess.Popen(
            [executable, "-hide_banner", "-nostdin", *arguments],
            stdin=subprocess.PIPE if reads_stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "SVT_LOG": "1"},  # Otherwise the AV1 encoder prints its settings as errors.
            **_DETACHED,
        )
    except OSError as error:
        raise _not_started(error) from error


@lru_cache(maxsize=8)
def has_filter(name: str) -> bool:
    """Whether this ffmpeg was built with the filter `name`."""
    listing = run_ffmpeg(["-v", "quiet", "-filters"]).decode("utf-8", "replace")
    return any(line.split()[1:2] == [name] for line in listing.splitlines())


@lru_cache(maxsize=8)
def has_encoder(name: str) -> bool:
    """Whether this ffmpeg was built with the encoder `name`."""
    listing = run_ffmpeg(["-v", "quiet", "-encoders"]).decode("utf-8", "replace")
    return any(line.split()[1:2] == [name] for line in listing.splitlines())


def _executable() -> str:
    """imageio-ffmpeg's choice, or, if that is too old, the first one found that is not."""
    import imageio_ffmpeg  # Imported here, so that rendering without a file works without imageio-ffmpeg.

    try:
        chosen = imageio_ffmpeg.get_ffmpeg_exe()
        version = _version(chosen)
    except (OSError, RuntimeError) as error:
        raise _not_started(error) from error
    if version is None or version >= _OLDEST:
        return chosen
    return _instead_of(chosen, version, Path(imageio_ffmpeg.__file__).parent / "binaries")


@lru_cache(maxsize=8)
def _instead_of(chosen: str, version: tuple[int, int], brought: Path) -> str:
    """Another ffmpeg than `chosen`, which is too old; logged once. `brought` is the folder of imageio-ffmpeg's own.

    Raises FfmpegError if there is none.
    """
    problem = f"{chosen} is ffmpeg {version[0]}.{version[1]}; expected {_OLDEST[0]}.{_OLDEST[1]} or newer"
    for candidate in (*map(str, sorted(brought.glob("ffmpeg*"))), shutil.which("ffmpeg")):
        with suppress(OSError):
            if candidate and (_version(candidate) or (0, 0)) >= _OLDEST:
                logging.getLogger(__name__).warning("%s; using %s instead.", problem, candidate)
                return candidate
    raise FfmpegError(
        f"{problem}. Run `pip install --upgrade imageio-ffmpeg`, or set IMAGEIO_FFMPEG_EXE to a newer ffmpeg."
    )


def _not_started(error: Exception) -> FfmpegError:
    return FfmpegError(
        f"ffmpeg cannot be started: {error}. Reinstall imageio-ffmpeg, or set IMAGEIO_FFMPEG_EXE to an ffmpeg."
    )


@lru_cache(maxsize=8)
def _version(executable: str) -> tuple[int, int] | None:
    """Major and minor version; None for a development build, which has a date or commit instead."""
    said = subprocess.run(
        [executable, "-version"], stdin=subprocess.DEVNULL, capture_output=True, check=False, **_DETACHED
    ).stdout.decode("utf-8", "replace")
    found = re.match(r"ffmpeg version n?(\d+)\.(\d+)", said)
    return (int(found[1]), int(found[2])) if found else None


def run_ffmpeg(arguments: Sequence[str], stdin: bytes = b"") -> bytes:
    """Runs ffmpeg to its end and returns its stdout. Raises FfmpegError if it fails."""
    return _outputs(arguments, stdin)[0]


def ffmpeg_says(arguments: Sequence[str]) -> list[str]:
    """Runs ffmpeg to its end and returns the lines of its stderr. Raises FfmpegError if it fails."""
    return _outputs(arguments)[1].decode("utf-8", "replace").splitlines()


def _outputs(arguments: Sequence[str], stdin: bytes = b"") -> tuple[bytes, bytes]:
    """(stdout, stderr) of a complete run of ffmpeg. Raises FfmpegError if it fails."""
    with start_ffmpeg(arguments, reads_stdin=True) as process:
        try:
            stdout, stderr = process.communicate(stdin)
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        raise FfmpegError(failure(process.returncode, stderr.decode("utf-8", "replace").splitlines()))
    return stdout, stderr


def failure(returncode: int | None, lines: Sequence[str]) -> str:
    """One sentence from ffmpeg's exit status and last lines."""
    ending = f"ffmpeg was killed by signal {-returncode}" if returncode and returncode < 0 else "ffmpeg failed"
    words = " | ".join(line.strip() for line in lines[-_LAST_WORDS:] if line.strip())
    return f"{ending} (exit status {returncode}); last output: {words or 'none'}"


def stdin_of(process: subprocess.Popen[bytes]) -> IO[bytes]:
    """The stdin pipe of a process started with `reads_stdin=True`."""
    assert process.stdin is not None
    return process.stdin


def stdout_of(process: subprocess.Popen[bytes]) -> IO[bytes]:
    """The stdout pipe of a process started with `start_ffmpeg`."""
    assert process.stdout is not None
    return process.stdout


def stderr_of(process: subprocess.Popen[bytes]) -> IO[bytes]:
    """The stderr pipe of a process started with `start_ffmpeg`."""
    assert process.stderr is not None
    return process.stderr


class LastWords:
    """Drains a process's stderr in a thread, so that it never fills up, and keeps its last lines."""

    def __init__(self, stderr: IO[bytes]):
        self._lines: deque[str] = deque(maxlen=_LAST_WORDS)
        self._thread = threading.Thread(target=self._drain, args=(stderr,), daemon=True)
        self._thread.start()

    def _drain(self, stderr: IO[bytes]) -> None:
        with stderr:
            for line in stderr:
                self._lines.append(line.decode("utf-8", "replace"))

    def lines(self) -> list[str]:
        """The last lines; waits until the process has closed its stderr."""
        self._thread.join()
        return list(self._lines)


class Encoder:
    """An ffmpeg process that takes raw frames and, when it is closed, returns all encoded bytes.

    It writes to a pipe and never to a file, so if this process is killed nothing else writes to the video.
    """

    def __init__(self, arguments: Sequence[str]):
        self._process = start_ffmpeg(arguments, reads_stdin=True)
        self._stdin, self._stdout = stdin_of(self._process), stdout_of(self._process)
        self._words = LastWords(stderr_of(self._process))
        self._output = io.BytesIO()
        self._reader = threading.Thread(target=self._collect, daemon=True)
        self._reader.start()

    def _collect(self) -> None:
        with self._stdout as stdout:
            shutil.copyfileobj(stdout, self._output)

    def write(self, data: bytes | memoryview) -> None:
        """Sends raw bytes; blocks while the encoder is busy. Raises FfmpegError if it has died."""
        try:
            self._stdin.write(data)
        except OSError as error:  # A broken pipe, or "invalid argument" on Windows.
            raise FfmpegError(self._end()) from error

    def close(self) -> bytes:
        """Ends the input, waits for the output and returns all of it. Raises FfmpegError if the encoder failed."""
        try:
            self._stdin.close()
        except OSError as error:
            raise FfmpegError(self._end()) from error
        message = self._end()
        if self._process.returncode != 0:
            raise FfmpegError(message)
        return self._output.getvalue()

    def kill(self) -> None:
        """Kills the encoder; the open segment is lost."""
        self._process.kill()
        self._end()

    def _end(self) -> str:
        with suppress(OSError):  # The pipe was broken before; the exit status below says why.
            self._stdin.close()
        lines = self._words.lines()
        self._reader.join()
        return failure(self._process.wait(), lines)
