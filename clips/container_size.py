"""How large a video file says that it is, to tell one that was cut short. Decoders play such files in silence."""

from __future__ import annotations

import os
from typing import BinaryIO

TS_PACKETS = (188, 192, 204)  # bytes: plain, with time codes (m2ts), with error correction


def promised_size(file: BinaryIO, format: str) -> int:
    """Bytes that the file has at least if it is whole, by its own account; 0 where it gives none.

    format: as ffmpeg names it, or several names with commas. The account is the sizes of the media data (avi, mp4, mov), of the
    segment (mkv, webm), of a packet (ts), or the mark at the end (gif).
    """
    account = next((_ACCOUNTS[name] for name in format.split(",") if name in _ACCOUNTS), None)
    if account is None:
        return 0
    return account(file)


def _at(file: BinaryIO, place: int, count: int) -> bytes:
    file.seek(place)
    return file.read(count)


def _size(file: BinaryIO) -> int:
    return file.seek(0, os.SEEK_END)


def _avi(file: BinaryIO) -> int:
    """The end of the last list with media data; the index behind it is no loss."""
    place, promised = 0, 0
    while len(head := _at(file, place, 12)) == 12:
        length = int.from_bytes(head[4:8], "little")
        if head[:4] == b"RIFF":
            place += 12  # its chunks follow, and behind them the next RIFF of a large file
            continue
        if length in (0, 0xFFFFFFFF):  # of a recording that was never closed
            break
        if head[:4] == b"LIST" and head[8:] == b"movi":
            promised = place + 8 + length
        place += 8 + length + length % 2
    return promised


def _matroska(file: BinaryIO) -> int:
    head = _at(file, 0, 1 << 12)
    place = 4
    length, width = _ebml_length(head[place : place + 8])
    place += width + length
    if head[place : place + 4] != b"\x18\x53\x80\x67":
        return 0
    place += 4
    length, width = _ebml_length(head[place : place + 8])
    known = width and length != (1 << 7 * width) - 1
    return place + width + length if known else 0


def _ebml_length(data: bytes) -> tuple[int, int]:
    """A number of EBML, and how many bytes it takes."""
    if not data or not data[0]:
        return 0, 0
    width = 9 - data[0].bit_length()
    return int.from_bytes(data[:width], "big") & (1 << 7 * width) - 1, width


def _mp4(file: BinaryIO) -> int:
    """The end of the last box with media data."""
    place, promised = 0, 0
    while len(head := _at(file, place, 16)) >= 8:
        length = int.from_bytes(head[:4], "big")
        length = int.from_bytes(head[8:], "big") if length == 1 else length
        if length < 8:  # 0: to the end of the file
            break
        place += length
        if head[4:8] == b"mdat":
            promised = place
    return promised


def _ts(file: BinaryIO) -> int:
    head, size = _at(file, 0, 5 * max(TS_PACKETS)), _size(file)
    for packet in TS_PACKETS:
        first = 4 if packet == 192 else 0
        if head[first::packet][:4] == b"GGGG":  # 0x47 begins a packet
            return -(-size // packet) * packet
    return 0


def _gif(file: BinaryIO) -> int:
    """Goes from block to block; only the last one is the trailer."""
    data = _at(file, 0, -1)

    def table(flags: int) -> int:
        return 3 << (flags & 7) + 1 if flags & 0x80 else 0

    def after_blocks(place: int) -> int:
        while data[place : place + 1] not in (b"", b"\0"):
            place += 1 + data[place]
        return place + 1

    place = 13 + table(data[10]) if len(data) > 10 else len(data)
    while place < len(data):
        kind = data[place]
        if kind == 0x3B:
            return place + 1
        if kind == 0x21:
            place = after_blocks(place + 2)
        elif kind == 0x2C and place + 9 < len(data):
            place = after_blocks(place + 11 + table(data[place + 9]))
        else:
            break
    return max(place, len(data)) + 1


_ACCOUNTS = {"avi": _avi, "matroska": _matroska, "mov": _mp4, "mpegts": _ts, "gif": _gif}
