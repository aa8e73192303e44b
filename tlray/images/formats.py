"""Know a file by its bytes: the formats that are read, the kinds that are not, and whether a file ends too early."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import pi_heif
from PIL import Image, PngImagePlugin

from tlray.images import tiff

Image.init()  # registers all formats; without it `formats=` knows only those already used
pi_heif.register_heif_opener(decode_threads=1, thumbnails=False, depth_images=False, aux_images=False)
PngImagePlugin.MAX_TEXT_CHUNK = 8 * 2**20  # of a profile or a text; all of a file are bounded by MAX_TEXT_MEMORY

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "HEIF", "JPEG2000", "PPM")
"""Pillow's names of the formats that are decoded, whatever the file's extension (JPEG includes MPO)."""

_NAMES = "jpg jpeg jpe jfif mpo png apng gif webp bmp dib tif tiff avif heic heif hif jp2 j2k ppm pgm pbm"
EXTENSIONS = frozenset(f".{name}" for name in _NAMES.split())
"""Lower-case file extensions of images; a name without an extension counts as an image too."""

_SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
    b"II+\x00": "TIFF",
    b"MM\x00+": "TIFF",
    b"BM": "BMP",
    b"\x00\x00\x00\x0cjP  ": "JPEG2000",
}
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_OTHERS = {
    b"\xff\x0a": "a JPEG XL image",
    b"\x00\x00\x00\x0cJXL \r\n\x87\n": "a JPEG XL image",
    b"II\xbc": "a JPEG XR image",
    b"8BPS": "a Photoshop file",
    b"%PDF": "a PDF file",
    b"%!PS": "a PostScript file",
    b"FUJIFILMCCD-RAW": "a Fujifilm raw file",
    b"IIRO": "an Olympus raw file",
    b"IIRS": "an Olympus raw file",
    b"IIU\x00": "a Panasonic raw file",
    b"SIMPLE  =": "a FITS file",
    b"\x00\x00\x01\x00": "an icon",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip file",
    b"\x1aE\xdf\xa3": "a video",
}
_BOXES = {b"crx ": "a Canon raw file", b"jxl ": "a JPEG XL image", b"qt  ": "a video", b"isom": "a video"}
_BOXES |= {b"mp41": "a video", b"mp42": "a video", b"M4V ": "a video"}
_CHUNK_BYTES, _SLICE_BYTES = 2**20, 2**16
_LOSSLESS, _JPEG_LS = 0xC3, 0xF7
_FRAMES = (0xC0, 0xC1, 0xC2, _LOSSLESS, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, _JPEG_LS)
_SCAN = 0xDA
_HIERARCHICAL = (0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF)


def sniff(data: bytes) -> str | None:
    """Return the format that the first bytes announce, of those that are read; None if unknown."""
    if data[4:8] == b"ftyp":
        if data[8:12] in (b"avif", b"avis"):
            return "AVIF"
        return "HEIF" if data[8:12] in _HEIF_BRANDS else None
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    for magic, name in _SIGNATURES.items():
        if data.startswith(magic) or (len(data) >= 3 and magic.startswith(data)):
            return name
    return None


def find_unread_kind(data: bytes) -> str | None:
    """Return what a file is if it is of a kind that is not read, as in "a JPEG of 12 bits a sample"; else None."""
    if data[4:8] == b"ftyp" and data[8:12] in _BOXES:
        return _BOXES[data[8:12]]
    for magic, kind in _OTHERS.items():
        if data.startswith(magic):
            return kind
    if data[128:132] == b"DICM":
        return "a DICOM file"
    name = sniff(data)
    if name == "JPEG":
        return _find_unread_jpeg(data)
    if name == "PNG" and data[12:16] == b"CgBI":
        return "a PNG in the form of Apple's apps (CgBI)"
    if name == "TIFF":
        if data[8:10] == b"CR":
            return "a Canon raw file"
        tags = tiff.read_tags(data)
        return None if tags is None else tiff.find_raw_kind(tags)
    head = data[:1024].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return "an SVG image" if name is None and head.startswith(b"<") and b"<svg" in head else None


def describe_unknown(data: bytes) -> str:
    """Describe bytes that are not an image, without quoting them: they may be private."""
    head = data[:512].lstrip().lower()
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; git lfs pull fetches the file"
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it looks like HTML or XML"
    return "it looks like text" if head.isascii() and b"\0" not in head else "unknown binary data"


def _find_unread_jpeg(data: bytes) -> str | None:
    for marker, start, stop in _iter_segments(data):
        if marker in _FRAMES and stop - start > 4:
            bits = data[start + 4]
            if marker == _JPEG_LS:
                return "a JPEG-LS image"
            if marker == _LOSSLESS and bits != 8:
                return f"a lossless JPEG of {bits} bits a sample"
            if marker in _HIERARCHICAL:
                return "a hierarchical JPEG"
            return None if bits == 8 else f"a JPEG of {bits} bits a sample"
    return None


def is_lossless_jpeg(data: bytes) -> bool:
    """Return whether a JPEG is lossless (process 14), which libjpeg decodes at full size alone."""
    return any(marker == _LOSSLESS for marker, _, _ in _iter_segments(data))


def _iter_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the marker of each segment of a JPEG up to its scan, and where it lies (ITU-T T.81, B.1)."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:
            stop = position + 1
        elif 0xD0 <= marker <= 0xD8 or marker == 0x01:
            stop = position + 2
        else:
            stop = position + 2 + int(struct.unpack(">H", data[position + 2 : position + 4])[0])
        yield marker, position, min(stop, len(data))
        if marker == _SCAN:
            return
        position = stop


def is_cut_short(data: bytes, error: Exception) -> bool:
    """Return whether a file that failed to decode ends earlier than its structure announces."""
    name = sniff(data)
    if name == "JPEG":
        return _is_jpeg_cut_short(data)
    if name == "PNG":
        return _is_png_cut_short(data)
    if name == "GIF":
        return b"\x3b" not in data[-2:]
    if name == "WEBP":
        return len(data) < 8 + int(struct.unpack("<I", data[4:8])[0])
    if name == "BMP":
        return len(data) < 6 or len(data) < int(struct.unpack("<I", data[2:6])[0])
    if name in ("HEIF", "AVIF"):
        return _is_box_cut_short(data)
    if name == "TIFF" and (cut := tiff.is_cut_short(data)) is not None:
        return cut
    if name == "JPEG2000":
        return b"\xff\xd9" not in data  # the end of its code stream (ITU-T T.800, A.4.4), which no data contain
    text = str(error).lower()
    return isinstance(error, EOFError | struct.error) or any(
        sign in text for sign in ("truncated", "unexpected end", "not enough", "read beyond")
    )


def _is_jpeg_cut_short(data: bytes) -> bool:
    """Return whether a segment up to the scan, or the EOI marker behind it, is missing."""
    end = 2
    for marker, start, stop in _iter_segments(data):
        if marker == _SCAN:
            return data.rfind(b"\xff\xd9", start) < 0
        end = stop
    return end + 4 > len(data)


def _is_png_cut_short(data: bytes) -> bool:
    """Return whether the chunks end before IEND."""
    return not any(name == b"IEND" or stop - start > 2**31 for name, start, stop in _iter_chunks(data))


def _iter_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name of each chunk of a PNG up to IEND, and where it begins and ends (PNG specification, 5.3).

    It ends at zeros, which may fill the rest of a file: megabytes of them would be hundreds of thousands of chunks.
    """
    position = 8
    while position + 12 <= len(data):
        stop = position + 12 + int(struct.unpack(">I", data[position : position + 4])[0])
        name = data[position + 4 : position + 8]
        if name == bytes(4):
            return
        yield name, position, stop
        if name == b"IEND":
            return
        position = stop


def find_damaged_chunk(data: bytes) -> str | None:
    """Return the name of a PNG's first chunk of pixels or colours whose checksum is wrong."""
    for name, start, stop in _iter_chunks(data):
        if name in (b"IHDR", b"PLTE", b"IDAT", b"tRNS") and stop <= len(data):
            (expected,) = struct.unpack(">I", data[stop - 4 : stop])
            if zlib.crc32(memoryview(data)[start + 4 : stop - 4]) != expected:
                return name.decode()
    return None


def get_png_bits(data: bytes) -> int:
    """Return the bits of a sample of a PNG."""
    return data[24]


_INTERLACED = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""First column and row, and steps to the next ones, of the passes of an interlaced PNG (PNG specification, 8.2)."""


def is_interlaced(data: bytes) -> bool:
    """Return whether a PNG's pixels come in passes."""
    return data[28] == 1


def has_all_rows(data: bytes) -> bool:
    """Return whether a PNG has the pixels that its header says; Pillow takes a stream that ends early."""
    width, height, bits, kind, *_, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    bits *= {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(kind, 1)
    passes = _INTERLACED if interlaced else ((0, 0, 1, 1),)
    missing = 0
    for left, top, across, down in passes:
        columns, rows = -((left - width) // across), -((top - height) // down)
        if columns > 0:
            missing += max(rows, 0) * (1 + (columns * bits + 7) // 8)  # a byte before each row names its filter
    inflater = zlib.decompressobj()
    for name, start, stop in _iter_chunks(data):
        for first in range(start + 8, stop - 4 if name == b"IDAT" else 0, _SLICE_BYTES):
            packed = data[first : min(first + _SLICE_BYTES, stop - 4)]
            while packed and missing > 0 and not inflater.eof:
                missing -= len(inflater.decompress(packed, _CHUNK_BYTES))
                packed = inflater.unconsumed_tail
    return missing <= 0


def strip_text(data: bytes) -> bytes:
    """Return a PNG without its text chunks, which no pixel depends on."""
    kept = [data[:8]]
    for name, start, stop in _iter_chunks(data):
        if name not in (b"tEXt", b"zTXt", b"iTXt"):
            kept.append(data[start:stop])
    return b"".join(kept)


def _is_box_cut_short(data: bytes) -> bool:
    """Return whether the last box of an ISO base media file (ISO/IEC 14496-12, 4.2) ends behind the file."""
    position = 0
    while position + 8 <= len(data):
        length = int(struct.unpack(">I", data[position : position + 4])[0])
        if length == 1:
            length = int(struct.unpack(">Q", data[position + 8 : position + 16].ljust(8, b"\0"))[0])
        if length < 8:  # 0: to the end of the file
            return False
        position += length
    return position != len(data)
