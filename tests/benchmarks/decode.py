"""What decoding a JPEG to 299 pixels costs and keeps, by decoder and size.

python tests/benchmarks/decode.py --image PHOTO.jpg [--megapixels 0.2 2 12]

Each decoder brings the same photograph, saved in each size, to the same square. Milliseconds of one core an image, and
the distance from decoding in full and shrinking with an antialiased bilinear filter, as PSNR in dB (40 can't be seen).
simplejpeg (`pip install simplejpeg`) is left out where it isn't installed.
"""

from __future__ import annotations

import importlib.util
import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tyro
from PIL import Image, ImageCms

Pixels = npt.NDArray[np.uint8]

SIDE = 299


@dataclass(frozen=True)
class Options:
    """What is decoded."""

    image: str
    """A photograph of any size; it is scaled to those below."""
    megapixels: tuple[float, ...] = (0.2, 2.0, 12.0)
    seconds: float = 3.0
    """How long each is measured."""
    json: str | None = None
    """Write the table here too."""


def shrink(image: Image.Image) -> Pixels:
    """The square, antialiased."""
    return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def decode_full(data: bytes) -> Pixels:
    """Pillow without `draft`: what the others are held to."""
    return shrink(Image.open(io.BytesIO(data)))


def decode_tlray(data: bytes) -> Pixels:
    """As training and labelling do."""
    from tlray.images.decode import decode

    return decode(data, SIDE).pixels


def decode_reduce(data: bytes) -> Pixels:
    """Pillow with `draft` and a box reduction before the filter."""
    image = Image.open(io.BytesIO(data))
    image.draft("RGB", (SIDE, SIDE))
    image = image.convert("RGB")
    resized = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return np.asarray(resized)


def decode_simplejpeg(data: bytes) -> Pixels:
    """libjpeg-turbo by simplejpeg, scaled by it to no less than the square, then Pillow's filter."""
    import simplejpeg

    pixels = simplejpeg.decode_jpeg(data, min_height=SIDE, min_width=SIDE, fastdct=False)
    return shrink(Image.fromarray(pixels))


def decode_tensorflow(data: bytes) -> Pixels:
    """TensorFlow's decoder and antialiased resize."""
    import tensorflow as tf

    pixels = tf.io.decode_jpeg(data, channels=3)
    resized = tf.image.resize(pixels, (SIDE, SIDE), antialias=True)
    return tf.cast(tf.round(resized), tf.uint8).numpy()  # type: ignore[no-any-return]


def make_profile() -> bytes:
    """An RGB profile whose primaries are not sRGB's: its red and green have changed places."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = {bytes(data[at : at + 4]): at + 4 for at in range(132, 132 + 12 * data[131], 12)}
    red, green = tags[b"rXYZ"], tags[b"gXYZ"]
    data[red : red + 8], data[green : green + 8] = data[green : green + 8], data[red : red + 8]
    return bytes(data)


def measure(decoder: Callable[[bytes], Pixels], data: bytes, expected: Pixels, seconds: float) -> dict[str, float]:
    """Core-milliseconds an image, and PSNR in dB."""
    pixels = decoder(data).astype(np.float64)
    began, cpu, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - began < seconds:
        decoder(data)
        count += 1
    error = float(((pixels - expected) ** 2).mean())
    return {
        "core_ms": 1000 * (time.process_time() - cpu) / count,
        "psnr_db": float("inf") if error == 0 else 10 * float(np.log10(255**2 / error)),
    }


def main(options: Options) -> None:
    """Measure all, print the table."""
    decoders: dict[str, Any] = {
        "Pillow, in full": decode_full,
        "tlray": decode_tlray,
        "Pillow, draft and reduce": decode_reduce,
        "TensorFlow": decode_tensorflow,
    }
    if importlib.util.find_spec("simplejpeg") is not None:
        decoders["simplejpeg"] = decode_simplejpeg
    source = Image.open(options.image).convert("RGB")
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for megapixels in options.megapixels:
        scale = (megapixels * 1e6 / (source.width * source.height)) ** 0.5
        size = (round(source.width * scale), round(source.height * scale))
        buffer = io.BytesIO()
        source.resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=90)
        data = buffer.getvalue()
        expected = decode_full(data).astype(np.float64)
        for name, decoder in decoders.items():
            rows.setdefault(name, {})[f"{megapixels:g} Mpx"] = measure(decoder, data, expected, options.seconds)
        buffer = io.BytesIO()
        source.resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=90, icc_profile=make_profile())
        turned = decode_tlray(buffer.getvalue()).astype(np.float64)
        row = rows.setdefault("tlray, another profile", {})
        row[f"{megapixels:g} Mpx"] = measure(decode_tlray, buffer.getvalue(), turned, options.seconds)
    print(f"{'':<26}" + "".join(f"{f'{megapixels:g} Mpx':>24}" for megapixels in options.megapixels))
    for name, row in rows.items():
        cells = (f"{cell['core_ms']:>10.2f} ms {cell['psnr_db']:>7.1f} dB" for cell in row.values())
        print(f"{name:<26}" + "".join(f"{cell:>24}" for cell in cells))
    if options.json:
        Path(options.json).write_text(json.dumps({"options": vars(options), "results": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
