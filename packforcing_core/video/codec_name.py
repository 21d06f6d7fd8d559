"""A browser's name for a video's codec (RFC 6381), read from the video's boxes."""

from __future__ import annotations


def codec_name(init: bytes) -> str | None:
    """For example "avc1.640028", from the `ftyp moov` of a growing video; None for an unknown codec.

    Sources: H.264: ISO/IEC 14496-15 5.3.3.1; AV1: AV1 in ISOBMFF 2.3; H.265: ISO/IEC 14496-15 8.3.3.1 and annex E.
    """
    for kind, name in ((b"avcC", _avc), (b"av1C", _av1), (b"hvcC", _hevc)):
        at = init.find(kind)
        if at >= 0:
            return name(init[at + 4 :])
    return None


def _avc(box: bytes) -> str:
    return f"avc1.{box[1:4].hex()}"


def _av1(box: bytes) -> str:
    profile, level = box[1] >> 5, box[1] & 31
    tier = "H" if box[2] & 0x80 else "M"
    depth = 8 if not box[2] & 0x40 else 12 if box[2] & 0x20 else 10
    return f"av01.{profile}.{level:02}{tier}.{depth:02}"


def _hevc(box: bytes) -> str:
    space, tier, profile = ("", "A", "B", "C")[box[1] >> 6], "H" if box[1] & 32 else "L", box[1] & 31
    compatible = int(f"{int.from_bytes(box[2:6], 'big'):032b}"[::-1], 2)
    constraints = "".join(f".{byte:x}" for byte in box[6:12].rstrip(b"\0"))
    return f"hvc1.{space}{profile}.{compatible:x}.{tier}{box[12]}{constraints}"
