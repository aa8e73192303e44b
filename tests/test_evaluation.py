import io

import numpy as np
import pytest
from PIL import Image

from tlray.evaluation import measure
from tlray.pictures import draw_confusion

TRUE = np.array([0, 0, 0, 1, 1, 2])
GUESS = np.array([0, 0, 1, 1, 0, 2])


def test_metrics_by_hand():
    measured = measure(TRUE, GUESS, ["a", "b", "c"])
    assert measured.accuracy == pytest.approx(4 / 6)
    assert measured.confusion == [[2, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert measured.by_class["a"] == pytest.approx({"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "images": 3})
    assert measured.by_class["b"]["precision"] == pytest.approx(1 / 2)


def test_a_class_without_images_has_no_undefined_numbers():
    measured = measure(TRUE, GUESS, ["a", "b", "c", "never seen"])
    assert measured.by_class["never seen"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "images": 0}


def test_the_picture_is_a_picture():
    image = Image.open(io.BytesIO(draw_confusion([[8, 2], [1, 9]], ["glass & co", "<b>"])))
    assert image.format == "PNG"
    assert len(np.unique(np.asarray(image.convert("L")))) > 20
