"""What is told by class leaves bundle.json for tables, and comes back whole."""

import dataclasses
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.report import data
from tlray.metrics.classification import ClassMeasurement, Measurement
from tlray.metrics.thresholds import Needed, Threshold, Thresholds
from tlray.model import class_tables
from tlray.model.class_tables import (
    CLASSES,
    CONFUSION,
    THRESHOLDS,
    drop_class_tables,
    join_class_tables,
    write_class_tables,
)
from tlray.model.manifest import Manifest
from tlray.storage.records import RecordError, dump_record, parse_record


@pytest.fixture
def manifest():
    made = data.make_manifest()
    return dataclasses.replace(made, thresholds=dataclasses.replace(made.thresholds, pooled=[made.classes[1]]))


@pytest.fixture
def stored(manifest, tmp_path):
    """The manifest as `bundle.json` holds it, beside its tables."""
    tables = write_class_tables(manifest)
    for name, table in tables.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(table)
    plain = parse_record(Manifest, dump_record(drop_class_tables(manifest)))
    return dataclasses.replace(plain, files=dict.fromkeys(tables, "hash"))


def test_a_manifest_comes_back_whole(manifest, stored, tmp_path):
    assert stored.metrics.test.by_class == stored.thresholds.by_class == {}
    assert stored.metrics.validation.confusion == stored.thresholds.pooled == []
    joined = join_class_tables(stored, tmp_path)
    assert joined == dataclasses.replace(manifest, files=stored.files)


def test_the_tables_have_one_row_a_class_or_pair(manifest, stored, tmp_path):
    classes = pq.read_table(tmp_path / CLASSES)
    assert classes.column_names[:3] == ["role", "class_index", "class_name"]
    assert classes.num_rows == 2 * len(manifest.classes)
    confusion = pq.read_table(tmp_path / CONFUSION)
    assert confusion.column_names == ["role", "true_index", "predicted_index", "images"]
    assert sum(confusion["images"].to_pylist()) == manifest.metrics.validation.images + manifest.metrics.test.images
    thresholds = pq.read_table(tmp_path / THRESHOLDS)
    assert thresholds["class_name"].to_pylist() == list(manifest.classes)
    assert thresholds["probability"].to_pylist()[-1] is None  # it does not reach the target


def test_of_too_many_pairs_the_most_frequent_are_kept(manifest, monkeypatch):
    monkeypatch.setattr(class_tables, "_MAX_PAIRS", 4)
    pairs = [[0, 0, 5], [0, 1, 1], [1, 0, 2], [1, 1, 4]]
    metrics = dataclasses.replace(
        manifest.metrics,
        validation=dataclasses.replace(manifest.metrics.validation, confusion=pairs),
        test=dataclasses.replace(manifest.metrics.test, confusion=pairs[:2]),
    )
    tables = class_tables.write_class_tables(dataclasses.replace(manifest, metrics=metrics))
    rows = pq.read_table(pa.BufferReader(tables[CONFUSION])).to_pylist()
    kept = [(row["role"], row["true_index"], row["predicted_index"], row["images"]) for row in rows]
    assert kept == [("validation", 0, 0, 5), ("validation", 1, 1, 4), ("test", 0, 0, 5), ("test", 0, 1, 1)]


def test_without_measured_images_there_are_no_tables(manifest, tmp_path):
    nothing = data.make_manifest(validation=False, test=False)
    assert write_class_tables(nothing) == {}
    assert join_class_tables(nothing, tmp_path) == nothing


@pytest.mark.parametrize(
    ("name", "change", "fault"),
    [
        (CLASSES, {"class_index": 1}, "its rows are not the bundle's classes in order"),
        (CLASSES, {"role": "train"}, r"classes\.parquet has other roles than validation and test"),
        (CLASSES, {"role": None}, r"classes\.parquet has other roles than validation and test"),
        (CLASSES, {"precision": None}, "precision"),
        (CLASSES, {"precision": float("nan")}, "precision takes a finite number"),
        (CONFUSION, {"true_index": 99}, "the confusion matrix has classes that the bundle has not"),
        (CONFUSION, {"predicted_index": -1}, "the confusion matrix has classes that the bundle has not"),
        (CONFUSION, {"images": None}, "a value of images is missing"),
        (THRESHOLDS, {"class_index": 1}, "its rows are not the bundle's classes in order"),
        (THRESHOLDS, {"kept": None}, "kept"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(stored, tmp_path, name, change, fault):
    table = pq.read_table(tmp_path / name)
    rows = table.to_pylist()
    rows[0] |= change
    pq.write_table(pa.Table.from_pylist(rows, table.schema), tmp_path / name)
    with pytest.raises(RecordError, match=fault):
        join_class_tables(stored, tmp_path)


@pytest.mark.parametrize("name", [CLASSES, CONFUSION, THRESHOLDS])
def test_a_table_of_other_columns_is_refused(stored, tmp_path, name):
    table = pq.read_table(tmp_path / name)
    first = table.column_names[0]
    for changed in (table.drop_columns([first]), table.set_column(0, first, pa.array([[1]] * table.num_rows))):
        pq.write_table(changed, tmp_path / name)
        with pytest.raises(RecordError, match=f"{name} has other columns"):
            join_class_tables(stored, tmp_path)


@pytest.mark.parametrize("name", [CLASSES, CONFUSION, THRESHOLDS])
def test_a_table_of_more_rows_than_there_can_be_is_not_read(stored, tmp_path, name):
    """A few kB of Parquet may stand for billions of equal rows."""
    table = pq.read_table(tmp_path / name)
    pq.write_table(pa.concat_tables([table] * 200), tmp_path / name)
    with pytest.raises(RecordError, match=r"rows; at most .* are possible"):
        join_class_tables(stored, tmp_path)


@pytest.mark.parametrize("name", [CLASSES, CONFUSION, THRESHOLDS])
def test_a_table_that_is_not_listed_is_missed(stored, tmp_path, name):
    files = {other: "hash" for other in stored.files if other != name}
    with pytest.raises(RecordError, match=f"{name} is not listed"):
        join_class_tables(dataclasses.replace(stored, files=files), tmp_path)


def test_a_table_that_is_no_parquet_is_refused(stored, tmp_path):
    (tmp_path / CONFUSION).write_bytes(b"PAR1")
    with pytest.raises(RecordError, match=r"confusion\.parquet cannot be read"):
        join_class_tables(stored, tmp_path)


def test_ten_thousand_classes_leave_bundle_json_small():
    names = [f"class number {index:05d}" for index in range(10_000)]
    one = ClassMeasurement(0.8, 0.7, 0.9, 0.7, 0.6, 0.8, 0.75, 100, 90)
    threshold = Threshold(0.8124, 0.953, 0.911, 0.977, 0.783, 141)
    measured = Measurement(
        **{**dataclasses.asdict(data.make_manifest().metrics.test), "by_class": dict.fromkeys(names, one)}
    )
    made = data.make_manifest()
    made = dataclasses.replace(
        made,
        classes=tuple(names),
        metrics=dataclasses.replace(made.metrics, validation=measured, test=measured),
        thresholds=Thresholds(
            0.95,
            0.9,
            threshold,
            0.8,
            None,
            dict.fromkeys(names, threshold),
            names[:5000],
            dict.fromkeys(names, Needed(7, 87)),
        ),
    )
    assert len(dump_record(made)) > 7 * 2**20
    small = dump_record(drop_class_tables(made))
    assert len(small) < 2**20
    assert len(json.loads(small)["classes"]) == 10_000
    assert sum(map(len, write_class_tables(made).values())) < 2 * 2**20
