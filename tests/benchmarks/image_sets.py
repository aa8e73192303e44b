"""Image sets that need no download: handwritten digits of scikit-learn, and shapes that are drawn here.

python tests/benchmarks/image_sets.py digits DIR    300 images to train on, 500 to test on, 10 classes
python tests/benchmarks/image_sets.py shapes DIR    240 images to train on, 480 to test on, 8 classes

Each writes DIR/train/CLASS/*.png and DIR/test/CLASS/*.png, the same files in every run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from PIL import Image, ImageDraw, ImageFilter

SIDE_PX = 128
TRAIN_EACH, TEST_EACH = 30, 60

Polygon = list[tuple[float, float]]
"""Corners around the origin, about 1 away from it."""


def turn_around(radii: Sequence[float], x: float = 0.0) -> Polygon:
    """Return corners at these distances from (x, 0), at equal angles, the first above it."""
    angles = np.linspace(0, 2 * math.pi, len(radii), endpoint=False)
    return [
        (x + radius * math.sin(angle), -radius * math.cos(angle)) for radius, angle in zip(radii, angles, strict=True)
    ]


def make_rectangle(half_width: float, half_height: float) -> Polygon:
    """Return its corners."""
    w, h = half_width, half_height
    return [(-w, -h), (w, -h), (w, h), (-w, h)]


HEART: Polygon = [
    (math.sin(t) ** 3, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t)) / 16)
    for t in np.linspace(0, 2 * math.pi, 60)
]
SHAPES: dict[str, tuple[list[Polygon], list[Polygon]]] = {
    "circle": ([turn_around([0.8] * 60)], []),
    "cross": ([make_rectangle(0.9, 0.28), make_rectangle(0.28, 0.9)], []),
    "heart": ([HEART], []),
    "moon": ([turn_around([0.85] * 60)], [turn_around([0.7] * 60, x=0.42)]),
    "ring": ([turn_around([0.85] * 60)], [turn_around([0.5] * 60)]),
    "square": ([make_rectangle(0.7, 0.7)], []),
    "star": ([turn_around([1.0, 0.42] * 5)], []),
    "triangle": ([turn_around([0.95] * 3)], []),
}
"""What is filled, then what is cut out of it, by name."""


@dataclass(frozen=True)
class Options:
    """What is written."""

    name: Annotated[Literal["digits", "shapes"], tyro.conf.Positional]
    folder: Annotated[Path, tyro.conf.Positional]


def iter_digits() -> Iterator[tuple[str, Image.Image]]:
    """Yield label and image of 800 digits, 8 x 8 pixels enlarged to 96."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for index in np.random.default_rng(0).permutation(len(digits.target))[:800]:
        pixels = np.round(digits.images[index] * (255 / 16)).astype(np.uint8)
        yield str(digits.target[index]), Image.fromarray(pixels).resize((96, 96), Image.Resampling.BICUBIC)


def iter_shapes() -> Iterator[tuple[str, Image.Image]]:
    """Yield label and image of shapes of any colour, size, place and turn on mottled ground, the classes in turn."""
    random = np.random.default_rng(0)
    for _ in range(TRAIN_EACH + TEST_EACH):
        for name, (filled, cut) in SHAPES.items():
            yield name, draw(filled, cut, random)


def draw(filled: list[Polygon], cut: list[Polygon], random: np.random.Generator) -> Image.Image:
    """Draw one shape, blurred and with noise."""
    ground = random.integers(0, 256, (9, 9, 3), np.uint8)
    image = Image.fromarray(ground).resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC)
    mask = Image.new("L", (2 * SIDE_PX, 2 * SIDE_PX))
    radius = SIDE_PX * random.uniform(0.35, 0.7)
    centre = SIDE_PX + random.uniform(-0.25, 0.25, 2) * SIDE_PX
    angle = random.uniform(-math.pi / 5, math.pi / 5)
    rotation = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    for polygons, value in ((filled, 255), (cut, 0)):
        for polygon in polygons:
            corners = centre + radius * np.array(polygon) @ rotation
            ImageDraw.Draw(mask).polygon([tuple(corner) for corner in corners.tolist()], fill=value)
    colour = Image.new("RGB", image.size, tuple(random.integers(0, 256, 3).tolist()))
    image.paste(colour, mask=mask.resize(image.size, Image.Resampling.LANCZOS))
    blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(random.uniform(0, 2))), np.float32)
    noisy = blurred + random.normal(0, random.uniform(2, 20), blurred.shape)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def main(options: Options) -> None:
    """Write one set."""
    images, num_train = (iter_digits(), 300) if options.name == "digits" else (iter_shapes(), TRAIN_EACH * len(SHAPES))
    for number, (label, image) in enumerate(images):
        path = options.folder / ("train" if number < num_train else "test") / label / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)


if __name__ == "__main__":
    main(tyro.cli(Options))
