import shutil
from dataclasses import replace

import numpy as np
import pytest

from tlray.config import TrainConfig
from tlray.errors import Code, DataError, StoppedError
from tlray.training import dataset
from tlray.training.dataset import assign_roles, hold_out, list_images


@pytest.fixture
def folder(tmp_path, write_digits):
    return write_digits(tmp_path / "train", 2, 6)


def make_config(folder, **values):
    return TrainConfig(data=str(folder), output="unused", **values)


def test_images_are_numbered_by_class_and_name(folder):
    images = list_images(make_config(folder))
    assert images.classes == ("0", "1")
    assert images.uris == sorted(map(str, folder.rglob("*.png")))
    assert images.labels.tolist() == [0] * 6 + [1] * 6
    assert images.labels.dtype == np.int32
    assert set(images.folder) == {"train"}


def test_the_fingerprint_changes_with_the_files(folder):
    before = list_images(make_config(folder)).fingerprint
    assert list_images(make_config(folder)).fingerprint == before
    next(folder.rglob("*.png")).unlink()
    assert list_images(make_config(folder)).fingerprint != before


def test_validation_and_test_folders_give_their_rows_these_roles(folder, tmp_path, write_digits):
    val, test = write_digits(tmp_path / "val", 2, 1, 10), write_digits(tmp_path / "test", 2, 2, 20)
    config = make_config(folder, val_data=str(val), test_data=str(test))
    images = list_images(config)
    roles = assign_roles(config, images, spread=False)
    assert roles.rows["train"].tolist() == list(range(12))
    assert roles.rows["val"].tolist() == [12, 13]
    assert roles.rows["test"].tolist() == [14, 15, 16, 17]
    assert roles.left_out == []


def test_without_a_validation_folder_every_training_image_gets_one_role(folder):
    config = make_config(folder, val_fraction=0.5)
    images = list_images(config)
    roles = assign_roles(config, images, spread=False)
    assert sorted([*roles.rows["train"], *roles.rows["val"]]) == list(range(12))
    assert 0 < len(roles.rows["val"]) < 12
    assert set(images.labels[roles.rows["train"]]) == {0, 1}


def test_classes_without_a_validation_image_are_named(tmp_path, write_digits, capsys):
    folder = write_digits(tmp_path / "train", 3, 6)
    for path in sorted((folder / "2").iterdir())[1:]:
        path.unlink()
    config = make_config(folder, val_fraction=0.2)
    images = list_images(config)
    roles = assign_roles(config, images, spread=False)
    assert set(images.labels[roles.rows["val"]]) == {0, 1}
    assert "no validation image of 1 of 3 classes, for want of images or groups: 2" in capsys.readouterr().out


@pytest.fixture
def bursts(tmp_path, write_digits):
    """A manifest of two classes of 20 images, five of one name's start a burst, and of one image without a burst."""
    folder = write_digits(tmp_path / "photos", 2, 20)
    lines = ["uri,label,burst"]
    for label in ("0", "1"):
        for index, path in enumerate(sorted((folder / label).iterdir())):
            burst = f"{label}{index // 5}"
            moved = path.rename(path.with_name(f"b{burst}_{index}.png"))
            lines.append(f"{moved},{label},{burst if index else ''}")
    manifest = tmp_path / "photos.csv"
    manifest.write_text("\n".join(lines))
    return manifest, folder


@pytest.mark.parametrize("how", ["column", "regex"])
def test_a_burst_stays_on_one_side(bursts, how, capsys):
    manifest, folder = bursts
    options = {"group_column": "burst"} if how == "column" else {"group_by_regex": r"/b(\d\d)_\d+\.png$"}
    config = make_config(manifest if how == "column" else folder, val_fraction=0.3, **options)
    images = list_images(config)
    roles = assign_roles(config, images, spread=False)
    sides = {}
    for role in ("train", "val"):
        for row in roles.rows[role]:
            if images.groups[row] is not None:
                sides.setdefault(images.groups[row], set()).add(role)
    assert len(sides) == 8
    assert all(len(roles_of_burst) == 1 for roles_of_burst in sides.values())
    assert {role for found in sides.values() for role in found} == {"train", "val"}
    alone = "; 2 are in none and stand alone" if how == "column" else ""
    assert f"8 groups of {38 if how == 'column' else 40} images stay together{alone}" in capsys.readouterr().out


def test_other_groups_in_a_manifest_are_another_training(bursts):
    manifest, _ = bursts
    config = make_config(manifest, group_column="burst")
    before = list_images(config).fingerprint
    manifest.write_text(manifest.read_text().replace(",01", ",00"))
    assert list_images(config).fingerprint != before


def test_test_images_of_a_burst_that_is_trained_on_are_left_out(bursts, tmp_path, write_digits, capsys):
    test = write_digits(tmp_path / "test", 2, 2, 40)
    known = sorted((test / "0").iterdir())[0]
    known = known.rename(known.with_name("b00_99.png"))
    _, folder = bursts
    pattern = r"/b(\d\d)_\d+\.png$"
    config = make_config(folder, test_data=str(test), val_fraction=0, group_by_regex=pattern)
    images = list_images(config)
    roles = assign_roles(config, images, spread=False)
    assert str(known) not in {images.uris[row] for row in roles.rows["test"]}
    assert len(roles.rows["test"]) == 3
    assert f"1 images of --test-data share a group with those that are trained or validated on: {known}" in (
        capsys.readouterr().out
    )


def test_groups_of_a_test_manifest_are_compared(bursts, tmp_path, write_digits, capsys):
    manifest, _ = bursts
    folder = write_digits(tmp_path / "test", 2, 2, 40)
    first, *others = sorted(folder.rglob("*.png"))
    lines = [f"{path},{path.parent.name},new" for path in others]
    test = tmp_path / "test.csv"
    test.write_text("\n".join(["uri,label,burst", f"{first},0, 00 ", *lines]))
    config = make_config(manifest, test_data=str(test), val_fraction=0, group_column="burst")
    images = list_images(config)
    roles = assign_roles(config, images, spread=False)
    assert [images.uris[row] for row in roles.rows["test"]] == list(map(str, others))
    assert f"1 images of --test-data share a group with those that are trained or validated on: {first}" in (
        capsys.readouterr().out
    )


def test_an_image_in_two_groups_is_named(bursts):
    manifest, _ = bursts
    lines = manifest.read_text().splitlines()
    manifest.write_text("\n".join([*lines, lines[5].rpartition(",")[0] + ",other"]))
    with pytest.raises(DataError, match=r"line 42: .*png has two values of burst, 00 and other"):
        list_images(make_config(manifest, group_column="burst"))


def test_groups_that_cannot_be_found_are_one_sentence(bursts):
    manifest, folder = bursts
    with pytest.raises(DataError, match="has no column patient"):
        list_images(make_config(manifest, group_column="patient"))
    with pytest.raises(DataError, match=r"takes manifests; got .*; for others give --group-by-regex"):
        list_images(make_config(folder, group_column="burst"))
    with pytest.raises(DataError, match="puts no image into a group"):
        list_images(make_config(folder, group_by_regex="patient-([0-9]+)"))
    with pytest.raises(DataError, match="puts all images into one group"):
        list_images(make_config(folder, group_by_regex="photos"))


def test_an_image_that_cannot_be_decoded_is_left_out_and_named(folder, capsys):
    bad = folder / "0" / "a.png"
    bad.write_bytes(b"not an image")
    config = make_config(folder, val_fraction=0.0)
    roles = assign_roles(config, list_images(config), spread=False)
    ((uri, fault),) = roles.left_out
    assert uri == str(bad)
    assert fault.partition(":")[0] in list(Code)
    assert 0 not in roles.rows["train"]
    assert len(roles.rows["train"]) == 12
    assert f"left out: {bad}" in capsys.readouterr().out


def test_more_bad_images_than_allowed_stop_the_training(folder):
    (folder / "0" / "a.png").write_bytes(b"not an image")
    config = make_config(folder, max_failed=0)
    with pytest.raises(StoppedError, match="1 of 13 images cannot be used, --max-failed allows 0"):
        assign_roles(config, list_images(config), spread=False)


def test_a_class_needs_one_image_that_can_be_decoded(folder):
    for path in (folder / "1").iterdir():
        path.write_bytes(b"not an image")
    config = make_config(folder, max_failed=100)
    with pytest.raises(DataError, match="no image of 1 can be used"):
        assign_roles(config, list_images(config), spread=False)


# ---- leakage


@pytest.fixture
def leaking(folder, tmp_path, write_digits):
    """Validation and test folders that share one image with training, and one with each other."""
    val, test = write_digits(tmp_path / "val", 2, 3, 10), write_digits(tmp_path / "test", 2, 3, 20)
    known, validated = sorted((folder / "0").iterdir())[0], sorted((val / "1").iterdir())[0]
    shutil.copy(known, val / "0" / "known.png")
    shutil.copy(known, test / "1" / "known.png")  # under another label too
    shutil.copy(validated, test / "1" / "validated.png")
    return {"val_data": str(val), "test_data": str(test)}


def list_names(images, roles, role):
    return {images.uris[row].rpartition("/")[2] for row in roles.rows[role]}


def test_images_that_are_known_are_named_and_not_measured_on(folder, leaking, capsys):
    config = make_config(folder, **leaking)
    images = list_images(config)
    roles = assign_roles(config, images, spread=False)
    assert {role: len(rows) for role, rows in roles.rows.items()} == {"train": 12, "val": 6, "test": 6}
    assert not {"known.png", "validated.png"} & (list_names(images, roles, "val") | list_names(images, roles, "test"))
    printed = capsys.readouterr().out
    assert "WARNING: 1 images of --val-data are among those that are trained or validated on: " in printed
    assert (
        f"WARNING: 2 images of --test-data are among those that are trained or validated on: {folder.parent}" in printed
    )
    assert "known.png, " in printed


def test_known_images_are_kept_where_that_is_asked_for(folder, leaking, capsys):
    config = make_config(folder, allow_leakage=True, **leaking)
    images = list_images(config)
    roles = assign_roles(config, images, spread=False)
    assert {role: len(rows) for role, rows in roles.rows.items()} == {"train": 12, "val": 7, "test": 8}
    assert capsys.readouterr().out.count("WARNING") == 2


def test_a_test_folder_of_nothing_but_training_images_is_refused(folder):
    config = make_config(folder, test_data=str(folder), val_fraction=0.3)
    with pytest.raises(DataError, match="--test-data: all 12 images are among those that are trained or validated on"):
        assign_roles(config, list_images(config), spread=False)


def test_a_small_set_has_folds_and_holds_nothing_out(folder):
    roles = assign(make_config(folder))
    assert (roles.folds, len(roles.rows["train"]), len(roles.rows["val"])) == (5, 12, 0)
    for options in ({"recipe": "seed"}, {"folds": 0}, {"cache": "off"}):
        roles = assign(make_config(folder, **options))
        assert roles.folds == 0
        assert len(roles.rows["train"]) + len(roles.rows["val"]) == 12
        assert len(roles.rows["val"]) > 0


def test_fewer_groups_than_folds_hold_some_out_unless_folds_are_asked_for(folder):
    config = make_config(folder)
    images = replace(list_images(config), groups=["a", "b", "c", "d"] * 3)
    assert assign_roles(config, images, spread=False).folds == 0
    with pytest.raises(
        DataError, match="--folds 5 needs as many different images or groups, and two of a class; got 4 of 2"
    ):
        assign_roles(make_config(folder, folds=5), images, spread=False)


def test_classes_of_one_group_each_have_no_folds(tmp_path, write_digits):
    folder = write_digits(tmp_path / "many", 6, 2)
    config = make_config(folder, group_by_regex=r"/(\d)/digit")
    with pytest.raises(DataError, match="no group can be held out"):
        assign(config)
    with pytest.raises(DataError, match="and two of a class; got 6 of 6 classes"):
        assign(replace(config, folds=5))


def test_a_set_too_large_for_solved_heads_has_no_folds(folder, monkeypatch):
    monkeypatch.setattr(dataset, "choose_sample", lambda images, features, classes: images - 1)
    assert assign(make_config(folder)).folds == 0
    with pytest.raises(DataError, match="--folds: 12 images of 2 classes are too many to solve heads on all"):
        assign(make_config(folder, folds=5))


def test_without_cached_features_images_are_held_out_of_folds(folder):
    config = make_config(folder)
    images, roles = list_images(config), assign(config)
    held = hold_out(config, images, roles)
    assert held.folds == 0
    assert sorted([*held.rows["train"], *held.rows["val"]]) == roles.rows["train"].tolist()
    assert len(held.rows["val"]) > 0


def assign(config):
    return assign_roles(config, list_images(config), spread=False)
