"""The number of frames in a video and their display times, from its packets; nothing is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, pairwise
from pathlib import Path
from statistics import median_low

from .boxes import VideoError
from .process import FfmpegError, run_ffmpeg, video_url

# The supported containers and bare streams, by ffmpeg's names. Others can make ffmpeg open further files or addresses
# (playlists, scripts, image sequences, session descriptions), whatever the file's extension.
_CONTAINERS = (
    "mov,matroska,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,apng,ivf,h264,hevc,obu,m4v,mxf,mjpeg,rm,nut,yuv4mpegpipe,dv"
)
_KEY = 1  # AV_PKT_FLAG_KEY; a listing names no flags where this is the only one.
_DISCARDED = 4  # AV_PKT_FLAG_DISCARD: decoded because other frames need it, but cut off by the file's edit list.
_NO_TIME = -(2**63)
_LONGEST_SECONDS = 24 * 3600
_FASTEST = 240
_ONE_FRAME_RATE = Fraction(25)


@dataclass(frozen=True)
class Packets:
    """`frames` at the constant `rate`. If stored frames are not shown exactly once each, `repeats` says how often each
    is shown (0: never); otherwise it is None. `times`: the second at which each stored frame is shown and whether it is
    a keyframe, in the order of display; empty where the file does not say. `notes` are sentences about irregularities.
    """

    frames: int
    rate: Fraction
    codec: str
    repeats: tuple[int, ...] | None = None
    times: tuple[tuple[Fraction, bool], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Packet:
    dts: int
    pts: int
    duration: int
    size: int = 1
    key: bool = False


def read_packets(path: Path) -> Packets:
    """Counts and times a video's frames by reading every packet. Raises VideoError if it cannot be read."""
    try:
        listing = run_ffmpeg([*input_arguments(path), "-c", "copy", "-f", "framecrc", "pipe:1"])
    except FfmpegError as error:
        if "not on whitelist" in str(error):
            raise VideoError(
                f"The video {path} cannot be read: it is a playlist, a script or in a format that is not supported. "
                "Convert it to .mp4, .mov, .mkv or .webm."
            ) from error
        raise VideoError(f"The video {path} cannot be read: {error}") from error
    header, packets = _parse(listing.decode("utf-8", "replace"))
    if not packets:
        raise VideoError(f"The video {path} cannot be read: it holds no frames.")
    return _timed(packets, Fraction(header["tb 0"]), header["codec_id 0"])


def input_arguments(path: Path, level: str = "error") -> list[str]:
    """ffmpeg arguments to open the first video stream of an untrusted file: only that file, and only as a video."""
    return [
        *("-v", level, "-nostats", "-protocol_whitelist", "file", "-format_whitelist", _CONTAINERS),
        *("-i", video_url(path), "-map", "0:V:0"),
    ]


def _parse(listing: str) -> tuple[dict[str, str], list[_Packet]]:
    """The header of a framecrc listing ("tb 0": "1/16384") and the packets that are shown."""
    header: dict[str, str] = {}
    packets: list[_Packet] = []
    for line in listing.splitlines():
        if line.startswith("#"):
            key, _, value = line[1:].partition(":")
            header[key.strip()] = value.strip()
            continue
        _, dts, pts, duration, size, _, *more = (field.strip() for field in line.split(","))
        flags = next((int(field[2:], 16) for field in more if field.startswith("F=")), _KEY)
        if not flags & _DISCARDED:
            packets.append(_Packet(int(dts), int(pts), int(duration), int(size), bool(flags & _KEY)))
    return header, packets


def _timed(packets: Sequence[_Packet], tick: Fraction, codec: str) -> Packets:
    count = len(packets)
    times, notes = _times(packets, tick)
    if count == 1:
        rate = 1 / (packets[0].duration * tick) if packets[0].duration > 0 else _ONE_FRAME_RATE
        return Packets(1, min(rate, Fraction(_FASTEST)), codec, notes=notes)
    if times is None:
        return Packets(count, _ONE_FRAME_RATE, codec, notes=notes)
    in_order = _in_order(packets, times, tick)
    steps = [after - before for before, after in pairwise(times)]
    usual = median_low(steps)
    if all(2 * abs(step - usual) <= max(usual, 2) for step in steps):
        return Packets(count, _even_rate(times, tick), codec, _stored_repeats(packets), in_order, notes)
    rate = min(_even_rate([0, usual, 2 * usual + 1], tick), Fraction(_FASTEST))
    places = [round((time - times[0]) * tick * rate) for time in times]
    repeats = [after - before for before, after in pairwise(places)] + [1]
    said = f"Its frame rate varies: it is read at {float(rate):.4g} frames per second, with frames repeated or dropped."
    return Packets(sum(repeats), rate, codec, tuple(repeats), in_order, (*notes, said))


def _in_order(packets: Sequence[_Packet], times: Sequence[int], tick: Fraction) -> tuple[tuple[Fraction, bool], ...]:
    """`Packets.times`. Empty packets (Theora) are no stored frames."""
    in_order = sorted(packets, key=lambda packet: packet.pts)
    if [packet.pts for packet in in_order] != times or not all(packet.size for packet in packets):
        return ()
    return tuple((packet.pts * tick, packet.key) for packet in in_order)


def _stored_repeats(packets: Sequence[_Packet]) -> tuple[int, ...] | None:
    """How often each stored frame is shown, if empty packets (Theora) mean "the same frame again"; otherwise None."""
    starts = [place for place, packet in enumerate(packets) if packet.size or not place]
    if len(starts) == len(packets):
        return None
    return tuple(after - before for before, after in pairwise([*starts, len(packets)]))


def _even_rate(times: Sequence[int], tick: Fraction) -> Fraction:
    """The rate of evenly spaced frames, allowing for times rounded to ticks.

    A container with coarse ticks (1 ms in Matroska) cannot store most rates exactly: of all rates that fit these times,
    the most usual one.
    """
    measured = (len(times) - 1) / ((times[-1] - times[0]) * tick)
    if len({after - before for before, after in pairwise(times)}) == 1:
        return measured
    usual = (Fraction(round(measured)), Fraction(round(measured * Fraction(1001, 1000))) * 1000 / 1001)
    for rate in (*usual, Fraction(round(2 * measured), 2)):
        if rate and all(abs(time - times[0] - place / (rate * tick)) <= 1 for place, time in enumerate(times)):
            return rate
    return measured


def _times(packets: Sequence[_Packet], tick: Fraction) -> tuple[list[int] | None, tuple[str, ...]]:
    """The display time of each frame in ticks, in that order, and notes for the user; None if the file has no times.

    AVI stores no display times. The decode times of its packets have the same spacing, only in another order.
    """
    durations = [packet.duration for packet in packets]
    choices = (
        sorted(packet.pts for packet in packets),
        [packet.dts for packet in packets],
        list(accumulate(durations[:-1], initial=0)),
    )
    for times in choices:
        rising = all(after > before for before, after in pairwise(times))
        if rising and _NO_TIME not in times and (times[-1] - times[0]) * tick <= _LONGEST_SECONDS:
            return times, ()
    return None, (f"It has no frame times: {_ONE_FRAME_RATE} frames per second are assumed.",)
