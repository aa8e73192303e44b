"""Run the whole job without any setup: train on real images that a dependency ships, and predict held-out ones.

scikit-learn carries 1,797 handwritten digits of 8 x 8 pixels (Alpaydin and Kaynak, UCI, 1998). A third is held out.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tlray.cluster.connect import connect
from tlray.config import DemoConfig, PredictConfig, TrainConfig
from tlray.console import say
from tlray.errors import OutputError, WeightsError
from tlray.model.weights import load_weights

IMAGE_SIZE_PX = 75
"""InceptionV3's smallest input; the digits have no more detail."""

_SHOWN_EXAMPLES = 10
_STORED_SIZE_PX = 64
_TEST_EVERY = 3


@dataclass(frozen=True)
class Example:
    """A held-out image with its true class, its predicted class, and that class's probability."""

    image: str
    true: str
    predicted: str
    probability: float


@dataclass(frozen=True)
class DemoSummary:
    """The result of the demo: accuracy on the held-out images, and a few of them."""

    output: str
    accuracy: float
    images: int
    weights: str
    examples: list[Example]
    seconds: float


def run_demo(config: DemoConfig) -> DemoSummary:
    """Write the digits, train, predict the held-out ones, and compare; a second run only reads the result.

    Raises:
        OutputError: the folder holds something else.
    """
    began = time.monotonic()
    config.check()
    root = Path(config.output).expanduser().absolute()
    write_digits(root)
    weights = _choose_weights(config.weights)
    training = _configure_training(config, root, weights)
    labelling = PredictConfig(
        model=str(root / "bundle"),
        input=(str(root / "test"),),
        output=str(root / "labels"),
        max_cpus=config.max_cpus,
        verbose=config.verbose,
    )
    # these imports take a second, which a wrong option need not wait for
    from tlray.prediction.predict import predict
    from tlray.training.train import train

    done = (root / "labels" / "_receipt.json").is_file()
    # one cluster for both
    with contextlib.nullcontext() if done else connect("local", config.max_cpus, verbose=config.verbose):
        train(training)
        predict(labelling)
    rows = _read_labels(root)
    right = sum(row.true == row.predicted for row in rows)
    step = max(1, len(rows) // _SHOWN_EXAMPLES)
    return DemoSummary(
        output=config.output,
        accuracy=right / len(rows),
        images=len(rows),
        weights="ImageNet" if weights == "imagenet" else "random" if weights == "none" else weights,
        examples=rows[step // 2 :: step][:_SHOWN_EXAMPLES],
        seconds=time.monotonic() - began,
    )


def write_digits(root: Path) -> None:
    """Write the digits as PNG files: `root/train/CLASS/*.png` and `root/test/CLASS/*.png`.

    Raises:
        OutputError: `root` holds something else.
    """
    if (root / "train").is_dir() and (root / "test").is_dir():
        return
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise OutputError(f"--output {root} already holds something that is not a demo; give a new folder")
    from sklearn.datasets import load_digits

    digits = load_digits()
    partial = root / ".partial"
    for index, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        role = "test" if index % _TEST_EVERY == 0 else "train"
        path = partial / role / str(label) / f"digit_{index:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(np.round(pixels * (255 / 16)).astype(np.uint8))
        image.resize((_STORED_SIZE_PX, _STORED_SIZE_PX), Image.Resampling.BICUBIC).save(path)
    for role in ("train", "test"):
        (partial / role).rename(root / role)
    partial.rmdir()
    say(f"wrote {len(digits.images):,} handwritten digits to {root}")


def _choose_weights(asked: str) -> str:
    """Return "imagenet" if its weights can be fetched, else "none" after a message."""
    if asked != "imagenet":
        return asked
    try:
        load_weights("imagenet", "inception_v3")
    except WeightsError as error:
        reason = str(error).partition("(")[2].partition(")")[0]
        say(f"ImageNet weights cannot be fetched ({reason or error}): every layer is trained from scratch")
        return "none"
    return "imagenet"


def _configure_training(config: DemoConfig, root: Path, weights: str) -> TrainConfig:
    """Fine-tune most of the base from pre-trained weights, or all of it from random ones."""
    scratch = weights == "none"
    return TrainConfig(
        data=str(root / "train"),
        output=str(root / "bundle"),
        weights=weights,
        image_size=IMAGE_SIZE_PX,
        val_fraction=0.08,
        recipe="seed",
        head_units=(256,),
        head_epochs=1,
        finetune_epochs=3,
        finetune_from="input" if scratch else "mixed2",
        batchnorm="train",
        finetune_optimizer="adam",
        lr_finetune=1e-3 if scratch else 3e-4,
        schedule="cosine",
        batch_size=16,
        num_workers=2,
        gpus_per_worker=0,
        shear=0.0,
        zoom=0.05,
        horizontal_flip=False,
        max_cpus=config.max_cpus,
        verbose=config.verbose,
    )


def _read_labels(root: Path) -> list[Example]:
    """Read the labels table; the true class is the name of an image's folder."""
    import pyarrow.parquet as pq

    table = pq.read_table(root / "labels" / "labels", columns=["uri", "class_name", "probability"])
    examples = []
    for uri, predicted, probability in zip(*(table[name].to_pylist() for name in table.column_names), strict=True):
        path = Path(uri)
        examples.append(Example(f"{path.parent.name}/{path.name}", path.parent.name, predicted, probability))
    return examples
