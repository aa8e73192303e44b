import numpy as np
import pytest

from tests.factories import make_files
from tlray.cluster.resources import WorkerResources
from tlray.config import TrainConfig
from tlray.features.cache import Cache, FrozenBase
from tlray.images.augment import Augmentation
from tlray.images.limits import Limits
from tlray.model.precision import Precision
from tlray.training.dataset import Images, Roles
from tlray.training.task import make_training_task

PRECISION = Precision("float32", "float32", "float32")


def make_task(config, *, boundary=None, val=True):
    """Return the task of 3 classes with 40, 8 and 2 images, of which every fifth validates."""
    labels = np.repeat(np.arange(3, dtype=np.int32), [40, 8, 2])
    rows = np.arange(50)
    chosen = (rows % 5 == 0) & val
    images = Images(
        ("a", "b", "c"), [""] * 50, labels, [""] * 50, make_files([""] * 50), np.full(50, "train"), None, ""
    )
    roles = Roles({"train": rows[~chosen], "val": rows[chosen], "test": rows[:0]}, [""] * 50, [])
    cache = None
    if boundary is not None:
        cache = Cache("", FrozenBase(config.backbone, 75, boundary, None, "", 0, PRECISION, Limits()), {})
    return make_training_task(
        config, config.choose_recipe(), WorkerResources(0, 1.0, 2, 0.5), images, roles,
        precision=PRECISION, cache=cache,
        augmentation=Augmentation(0, 0, False, 0), places=None, base_weights=None,
    )  # fmt: skip


def make_config(**values):
    return TrainConfig(data="photos", output="bundle", **values)


def test_phases_are_those_with_epochs():
    task = make_task(make_config(head_epochs=2, finetune_epochs=0, schedule="cosine", lr_head=0.5))
    ((phase),) = task.phases
    assert (phase.name, phase.epochs, phase.learning_rate, phase.schedule) == ("head", 2, 0.5, "cosine")
    assert [phase.name for phase in make_task(make_config()).phases] == ["head", "finetune"]


@pytest.mark.parametrize(
    ("boundary", "cached"), [(None, [False, False]), ("input", [True, False]), ("mixed2", [True, True])]
)
def test_a_phase_is_cached_if_the_cache_has_its_features(boundary, cached):
    assert [phase.cached for phase in make_task(make_config(), boundary=boundary).phases] == cached


def test_phase_2_must_gain_where_its_end_is_annealed():
    assert make_task(make_config()).must_gain
    for other in ({"recipe": "seed"}, {"select": "accuracy"}, {"schedule": "constant"}, {"early_stopping": 2}):
        assert not make_task(make_config(**other)).must_gain


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, [1, 1]), ({"head_epochs": 1, "finetune_epochs": 2}, [1 / 3, 2 / 3]), ({"recipe": "seed"}, [0, 0])],
)
def test_a_short_phase_does_not_end_while_it_warms_up(options, expected):
    assert [phase.warmup_epochs for phase in make_task(make_config(**options)).phases] == pytest.approx(expected)
    given = make_task(make_config(**options, warmup_epochs=1.5)).phases
    assert [phase.warmup_epochs for phase in given] == [1.5, 1.5]


def test_the_plan_changes_with_what_a_resumed_run_needs():
    plan = make_task(make_config()).plan
    assert plan == make_task(make_config(seed=1, num_workers=2)).plan
    assert plan != make_task(make_config(cache="off")).plan


def test_classes_weigh_the_same_unless_balanced():
    assert make_task(make_config()).class_weights.tolist() == [1, 1, 1]
    weights = make_task(make_config(class_weights="balanced"), val=False).class_weights
    np.testing.assert_allclose(weights, 50 / 3 / np.array([40, 8, 2]), rtol=1e-6)


def test_golden_rows_take_the_classes_in_turn():
    task = make_task(make_config(), val=False)
    assert len(task.golden_rows) == 16
    assert task.golden_rows[:6].tolist() == [0, 40, 48, 1, 41, 49]
    assert set(make_task(make_config()).golden_rows) == set(range(0, 50, 5))


def test_samples_are_of_their_roles_and_seeded():
    task = make_task(make_config(seed=3))
    assert set(task.reference_rows) == set(task.train_rows)
    assert set(task.calibration_rows) == set(task.held_rows) == set(task.val_rows)


def test_with_many_classes_fewer_images_calibrate(monkeypatch):
    monkeypatch.setattr("tlray.training.task._CALIBRATION_NUMBERS", 15)
    task = make_task(make_config())
    assert len(task.calibration_rows) == 5
    assert len(task.val_rows) == 10
