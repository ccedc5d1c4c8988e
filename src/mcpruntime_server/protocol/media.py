"""Images and sounds that code shows: what counts as one, and how large one may be.

The sandbox uses this to make what it shows fit, and the host to check what a sandbox claims. The
type is read from the bytes themselves; nobody's word for it counts.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False  # importing `typing` would slow down the start of every sandbox
if TYPE_CHECKING:
    from typing import Optional, Tuple

MAX_MEDIA_ITEMS = 10  # of one run; a model pays for each
MAX_MEDIA_BYTES = 1_500_000  # of one item; clients refuse results of several megabytes
MAX_ALL_MEDIA_BYTES = 3_000_000  # of one run
MAX_IMAGE_SIDE = 1_568  # pixels; models scale larger images down
MAX_SHOWN_SIDE = 4_096  # pixels of an image that is passed on as it is
AUDIO_MAGICS = (
    (b"ID3", "audio/mpeg"),
    (b"\xff\xfb", "audio/mpeg"),
    (b"\xff\xf3", "audio/mpeg"),
    (b"OggS", "audio/ogg"),
    (b"fLaC", "audio/flac"),
)
JPEG_SIZE_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


class Media:
    """One image or sound: `width` and `height` are 0 for a sound."""

    __slots__ = ("data", "height", "mime_type", "width")

    def __init__(self, data: bytes, mime_type: str, width: int = 0, height: int = 0) -> None:
        self.data = data
        self.mime_type = mime_type
        self.width = width
        self.height = height

    @property
    def kind(self) -> str:
        """What it is: "image" or "audio"."""
        return self.mime_type.partition("/")[0]

    @property
    def problem(self) -> str:
        """Why it cannot be shown as it is; "" if it can."""
        if len(self.data) > MAX_MEDIA_BYTES:
            size = f"{len(self.data) / 1e6:.1f} MB"
            return f"it has {size}; the limit is {MAX_MEDIA_BYTES / 1e6:.1f} MB"
        if max(self.width, self.height) > MAX_SHOWN_SIDE:
            size = f"{self.width}x{self.height}"
            return f"it has {size} pixels; the limit is {MAX_SHOWN_SIDE} on each side"
        return ""

    def describe(self, number: int) -> str:
        """Return the line that stands for it where only text is shown."""
        form = self.mime_type.partition("/")[2].upper()
        size = f" {self.width}x{self.height}" if self.kind == "image" else ""
        return f"[{self.kind} {number}: {form}{size}]"


def identify_media(data: bytes) -> Optional[Media]:
    """Return what the bytes are, by their own header; None if neither image nor sound."""
    try:
        found = _identify_image(data)
    except (struct.error, IndexError):
        return None
    if found is not None:
        width, height = found[1:]
        return Media(data, found[0], width, height) if width > 0 and height > 0 else None
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        return Media(data, "audio/wav")
    for magic, mime_type in AUDIO_MAGICS:
        if data.startswith(magic):
            return Media(data, mime_type)
    return None


def _identify_image(data: bytes) -> Optional[Tuple[str, int, int]]:
    if data.startswith(b"\x89PNG\r\n\x1a\n") and data[12:16] == b"IHDR":
        return ("image/png", *struct.unpack(">II", data[16:24]))
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return ("image/gif", *struct.unpack("<HH", data[6:10]))
    if data.startswith(b"\xff\xd8\xff"):
        return ("image/jpeg", *_find_jpeg_size(data))
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ("image/webp", *_find_webp_size(data))
    return None


def _find_jpeg_size(data: bytes) -> Tuple[int, int]:
    """Return width and height from the first frame header; (0, 0) if there is none."""
    position = 2
    while position + 9 < len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker in JPEG_SIZE_MARKERS:
            height, width = struct.unpack(">HH", data[position + 5 : position + 9])
            return width, height
        (length,) = struct.unpack(">H", data[position + 2 : position + 4])
        position += 2 + max(length, 2)
    return 0, 0


def _find_webp_size(data: bytes) -> Tuple[int, int]:
    form = data[12:16]
    if form == b"VP8X":
        width, height = data[24:27], data[27:30]
        return int.from_bytes(width, "little") + 1, int.from_bytes(height, "little") + 1
    if form == b"VP8L":
        (bits,) = struct.unpack("<I", data[21:25])
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if form == b"VP8 ":
        width, height = struct.unpack("<HH", data[26:30])
        return width & 0x3FFF, height & 0x3FFF
    return 0, 0
