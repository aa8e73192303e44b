import numpy as np

from tlray.images.augment import Augmentation, compose_transform, make_keys

SIZE = 32


def test_a_view_depends_on_seed_content_and_view_alone():
    augmentation = Augmentation(10, 0.2, True, seed=3)
    together = augmentation.draw(np.array([4, 9, 2]), 1, SIZE)
    np.testing.assert_array_equal(augmentation.draw(np.array([9]), 1, SIZE)[0], together[1])
    assert (augmentation.draw(np.array([9]), 2, SIZE)[0] != together[1]).any()
    assert (Augmentation(10, 0.2, True, seed=4).draw(np.array([9]), 1, SIZE)[0] != together[1]).any()


def test_keys_are_the_first_bits_of_a_digest():
    assert make_keys(["ff" * 32, "0" * 15 + "1" + "f" * 48, ""]).tolist() == [2**64 - 1, 1, 0]


def test_no_augmentation_is_the_identity():
    transforms = Augmentation(0, 0, False, seed=0).draw(np.arange(5), 0, SIZE)
    np.testing.assert_allclose(transforms, np.tile([1, 0, 0, 0, 1, 0, 0, 0], (5, 1)), atol=1e-5)


def test_half_of_the_views_are_mirrored():
    transforms = Augmentation(0, 0, True, seed=0).draw(np.arange(400), 0, SIZE)
    mirrored = transforms[:, 0] < 0
    assert 0.4 < mirrored.mean() < 0.6
    np.testing.assert_allclose(transforms[mirrored][:, 2], SIZE - 1, atol=1e-4)


def test_zoom_and_shear_stay_within_their_range():
    transforms = Augmentation(10, 0.2, False, seed=0).draw(np.arange(400), 0, SIZE)
    assert transforms[:, 0].min() >= 0.8
    assert transforms[:, 0].max() <= 1.2
    assert transforms[:, 0].std() > 0.05
    largest = np.sin(np.deg2rad(10)) * 1.2
    assert np.abs(transforms[:, 1]).max() <= largest + 1e-6


def test_the_centre_stays_where_it_is():
    a = compose_transform(SIZE, shear_deg=8, zoom_columns=0.9, zoom_rows=1.1)
    centre = (SIZE - 1) / 2
    np.testing.assert_allclose(a[0] * centre + a[1] * centre + a[2], centre, atol=1e-4)
    np.testing.assert_allclose(a[3] * centre + a[4] * centre + a[5], centre, atol=1e-4)
