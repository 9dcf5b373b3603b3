"""Formats of image files that are read, and what is wrong with a file that does not decode."""

import re

# Formats of cameras, phones and the web; none that starts another program or loads fonts (EPS, PDF, SVG, WMF).
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "AVIF")
SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"RIFF....WEBP": "WEBP",
    b"II\\*\x00": "TIFF",
    b"MM\x00\\*": "TIFF",
    b"GIF8[79]a": "GIF",
    b"....ftypavi[fs]": "AVIF",
    b"BM": "BMP",
}
HEIC = re.compile(rb"....ftyp(heic|heix|hevc|mif1|msf1)", re.DOTALL)


class BadImage(Exception):
    """Bytes that are not a usable image.

    Args:
        reason: A slug to count by: ``empty``, ``not-an-image``, ``unsupported``, ``too-many-pixels``, ``too-small``,
            ``truncated`` or ``broken``.
        detail: A sentence for people, the same on every machine.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def signature(data: bytes) -> str | None:
    """Return the format that the first bytes of a file announce, or ``None``."""
    for pattern, kind in SIGNATURES.items():
        if re.match(pattern, data, re.DOTALL):
            return kind
    return None


def damage_reason(data: bytes, error: Exception) -> str:
    """Return ``truncated`` or ``broken`` for a file of a known format, by the decoder's message."""
    cut_webp = signature(data) == "WEBP" and int.from_bytes(data[4:8], "little") + 8 > len(data)
    message = str(error).lower()
    cut = cut_webp or any(word in message for word in ("truncated", "eof", "end of file", "not enough", "too short"))
    return "truncated" if cut or len(data) < 32 else "broken"
