from typing import get_args, get_type_hints

import pytest

from tlray.config import TrainConfig
from tlray.model.backbones import BACKBONES, INPUT, read_walks


def test_every_base_can_be_chosen_and_has_been_walked():
    assert set(get_args(get_type_hints(TrainConfig)["backbone"])) == set(BACKBONES)
    assert set(read_walks()) == {entry.keras_name for entry in BACKBONES.values()}


@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=BACKBONES)
def test_boundaries_go_from_the_input_to_the_output(backbone):
    cuts = list(backbone.boundaries.values())
    assert next(iter(backbone.boundaries)) == INPUT
    assert (cuts[0].side_px, cuts[0].channels, cuts[0].frozen_share) == (backbone.image_size_px, 3, 0.0)
    shares = [cut.frozen_share for cut in cuts]
    assert shares == sorted(set(shares))
    assert shares[-1] <= 1
    sides = [cut.side_px for cut in cuts]
    assert sides == sorted(sides, reverse=True)
    assert 0 < backbone.boundaries[backbone.default_boundary].frozen_share < 1


@pytest.mark.parametrize(
    ("boundary", "image_size_px", "bytes_each", "expected"),
    [
        ("block_12_add", 224, 4, 14 * 14 * 96 * 4),
        ("block_12_add", 224, 2, 14 * 14 * 96 * 2),
        ("block_12_add", 112, 4, 7 * 7 * 96 * 4),
        ("block_16_project_BN", 32, 4, 320 * 4),
        (INPUT, 64, 4, 64 * 64 * 3 * 4),
    ],
)
def test_activations_scale_with_the_area_of_the_image(boundary, image_size_px, bytes_each, expected):
    entry = BACKBONES["mobilenet_v2"]
    assert entry.estimate_activation_bytes(boundary, image_size_px, bytes_each) == expected
