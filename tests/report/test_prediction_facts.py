from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from tests.factories import make_table
from tests.report import data
from tests.report.data import make_run
from tests.report.pages import parse, read_nothing
from tlray.output.schema import LABEL_FIELDS
from tlray.report import prediction_facts
from tlray.report.prediction import render_prediction


def test_labels_are_read_back(tmp_path):
    rng = np.random.default_rng(0)
    rows, facts = data.gather(tmp_path, [data.make_labels(start, 1000, rng) for start in (0, 1000, 2000)])
    good = [row for row in rows if row["status"] == "ok"]
    assert facts.rows_read == 3000
    assert not facts.is_sample
    assert facts.labelled_read == len(good)
    assert facts.class_counts["metal"] == sum(row["class_name"] == "metal" for row in good)
    assert facts.needs_review == sum(row["needs_review"] for row in good)
    assert facts.ood == sum(row["ood_score"] > 1 for row in good)
    assert facts.confidence == pytest.approx(np.mean([row["probability"] for row in good]))
    assert facts.confidences == np.histogram([row["probability"] for row in good], 20, (0, 1))[0].tolist()
    ranked = sorted((row for row in good if row["class_name"] == "glass"), key=lambda row: row["probability"])
    assert [row.row_id for row in facts.least_sure["glass"]] == [row["row_id"] for row in ranked[:6]]
    assert [row.row_id for row in facts.surest["glass"]] == [row["row_id"] for row in ranked[:-7:-1]]
    for name, browsed in facts.browsed.items():
        ids = {row["row_id"] for row in good if row["class_name"] == name}
        assert {row.row_id for row in browsed} < ids
        assert len({row.row_id for row in browsed}) == 60
        assert [row.probability for row in browsed] == sorted((row.probability for row in browsed), reverse=True)
        assert {row.row_id // 1000 for row in browsed} == {0, 1, 2}
    most_ood = sorted(good, key=lambda row: -row["ood_score"])[:12]
    assert [row.row_id for row in facts.most_ood] == [row["row_id"] for row in most_ood]
    bad = [row["uri"] for row in rows if row["status"] == "CORRUPT"]
    assert [failure.uri for failure in facts.failures["CORRUPT"]] == bad[:8]


def test_with_many_classes_few_rows_of_each_are_browsed(tmp_path, monkeypatch):
    monkeypatch.setattr(prediction_facts, "_MAX_BROWSED_IN_ALL", 30)
    _, facts = data.gather(tmp_path, [data.make_labels(0, 1000, np.random.default_rng(0))])
    assert {len(browsed) for browsed in facts.browsed.values()} == {5}
    monkeypatch.setattr(prediction_facts, "_MAX_BROWSED_IN_ALL", 3)
    _, facts = data.gather(tmp_path / "none", [data.make_labels(0, 1000, np.random.default_rng(0))])
    assert not any(facts.browsed.values())
    _, text = parse(render_prediction(facts, read_nothing))
    assert "Browse" not in text


def test_of_many_parts_a_sample_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(prediction_facts, "MAX_PARTS", 2)
    rng = np.random.default_rng(0)
    tables = [data.make_labels(start, 100, rng, review=False, ood=False) for start in range(0, 500, 100)]
    _, facts = data.gather(tmp_path, tables)
    assert facts.is_sample
    assert facts.rows_read == 200
    read = pa.concat_tables([tables[0], tables[2]])["class_name"].to_pylist()
    assert facts.class_counts == {name: read.count(name) for name in data.CLASSES}
    assert facts.needs_review is None
    assert facts.ood is None
    assert facts.most_ood == []
    _, text = parse(render_prediction(facts, read_nothing))
    assert "from a sample: 200 of 500 rows" in text
    assert "need review" not in text


def test_a_run_without_labels_has_no_confidence(tmp_path):
    columns = {"row_id": [0, 1, 2], "uri": ["/a", "/b", "/c"], "status": ["EMPTY"] * 3, "error": ["no bytes"] * 3}
    columns["model_id"] = [data.MODEL_ID] * 3
    _, facts = data.gather(tmp_path, [make_table(columns, LABEL_FIELDS)])
    assert facts.confidence is None
    assert facts.verdict is None
    assert facts.shift is None
    assert facts.corrected is None
    assert (facts.labelled_read, facts.class_counts, facts.most_ood) == (0, {}, [])
    assert [(failure.uri, failure.error) for failure in facts.failures["EMPTY"]] == [
        ("/a", "no bytes"),
        ("/b", "no bytes"),
        ("/c", "no bytes"),
    ]
    _, text = parse(render_prediction(facts, read_nothing))
    assert "Rows without a label" in text


def test_a_probability_of_one_is_in_the_last_bin_and_a_missing_score_is_not_an_example(tmp_path):
    columns = {
        "row_id": [0, 1, 2],
        "uri": ["/a", "/b", "/c"],
        "status": ["ok"] * 3,
        "class_name": ["glass"] * 3,
        "probability": [1.0, 0.0, 0.5],
        "ood_score": [None, 1.0, 1.5],
        "model_id": [data.MODEL_ID] * 3,
    }
    _, facts = data.gather(tmp_path, [make_table(columns, LABEL_FIELDS)])
    assert facts.confidences == [1] + [0] * 9 + [1] + [0] * 8 + [1]
    assert facts.ood == 1  # a score of exactly 1 is not above 1
    assert [row.row_id for row in facts.most_ood] == [2, 1]
    assert [row.row_id for row in facts.surest["glass"]] == [0, 2, 1]


def make_shifted(rows=4000):
    """Labels of an archive in which nearly everything is glass."""
    rng = np.random.default_rng(0)
    shares = [0.9 if name == "glass" else 0.1 / (len(data.CLASSES) - 1) for name in data.CLASSES]
    names = rng.choice(data.CLASSES, rows, p=shares)
    columns = {
        "row_id": range(rows),
        "uri": [f"/{row}.jpg" for row in range(rows)],
        "status": ["ok"] * rows,
        "class_name": names.tolist(),
        "predicted_index": [data.CLASSES.index(name) for name in names],
        "probability": rng.uniform(0.6, 1, rows).tolist(),
        "model_id": [data.MODEL_ID] * rows,
    }
    return make_table(columns, LABEL_FIELDS)


def test_shares_are_corrected_only_where_classes_are_distributed_otherwise(tmp_path):
    _, usual = data.gather(tmp_path / "usual", [data.make_labels(0, 1000, np.random.default_rng(0))])
    assert usual.corrected is None
    _, moved = data.gather(tmp_path / "moved", [make_shifted()])
    assert list(moved.corrected) == list(data.CLASSES)
    assert sum(moved.corrected.values()) == pytest.approx(1)
    assert moved.corrected["glass"] > 0.9  # what is not sure to be another class is more glass
    _, text = parse(render_prediction(moved, read_nothing))
    assert "Shares corrected for label shift" in text


def test_shares_are_not_corrected_where_the_probabilities_tell_no_prior(tmp_path):
    manifest = data.make_manifest()
    _, imported = data.gather(tmp_path / "imported", [make_shifted()], replace(manifest, training=None))
    assert imported.corrected is None
    _, usual = data.gather(tmp_path / "usual", [make_shifted()], manifest)
    training = replace(manifest.training, config={**manifest.training.config, "class_weights": "balanced"})
    _, balanced = data.gather(tmp_path / "balanced", [make_shifted()], replace(manifest, training=training))
    assert balanced.corrected != usual.corrected


def test_with_thousands_of_classes_shares_are_left(tmp_path, monkeypatch):
    monkeypatch.setattr(prediction_facts, "MAX_CORRECTED", 3)
    _, facts = data.gather(tmp_path, [make_shifted()])
    assert facts.corrected is None


def test_near_duplicates_are_found_by_embeddings(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    tables = [data.make_labels(start, 50, rng) for start in (0, 50)]
    embeddings = np.abs(rng.normal(size=(100, 16))).astype(np.float32)
    bad = [row for row, status in enumerate(pa.concat_tables(tables)["status"].to_pylist()) if status != "ok"]
    copies = [row for row in (7, 30, 80, 90) if row not in bad]
    embeddings[copies] = embeddings[copies[0]]
    kind = pa.list_(pa.float32(), 16)
    values = [None if row in bad else embedding for row, embedding in enumerate(embeddings)]
    tables = [
        table.append_column("embedding", pa.array(values[start : start + 50], kind))
        for start, table in zip((0, 50), tables, strict=True)
    ]
    _, without = data.gather(tmp_path / "without", tables)
    assert without.duplicates is None
    monkeypatch.setattr(data, "make_run", lambda *run: replace(make_run(*run), config={"embeddings": True}))
    _, facts = data.gather(tmp_path / "with", tables)
    assert (facts.duplicates.compared, facts.duplicates.groups) == (100 - len(bad), 1)
    assert facts.duplicates.surplus == len(copies) - 1
    assert [row.row_id for row in facts.duplicates.shown[0].examples] == copies
    _, text = parse(render_prediction(facts, read_nothing))
    assert f"{len(copies) - 1} of {100 - len(bad)} compared images are nearly the same as another one" in text
    assert f"{len(copies)} images" in text
    # of many rows the first of each part are compared
    monkeypatch.setattr(prediction_facts, "MAX_IMAGES", 40)
    _, facts = data.gather(tmp_path / "few", tables)
    assert facts.duplicates.compared == 40


def test_a_promise_is_one_where_the_thresholds_were_applied(tmp_path, monkeypatch):
    tables = [data.make_labels(0, 50, np.random.default_rng(0))]
    assert data.gather(tmp_path / "without", tables)[1].promise is None
    monkeypatch.setattr(data, "make_run", lambda *run: replace(make_run(*run), config={"min_probability": "auto 1234"}))
    assert data.gather(tmp_path / "with", tables)[1].promise == data.make_manifest().thresholds
    nothing = replace(data.make_manifest().thresholds, kept=0.0)
    manifest = replace(data.make_manifest(), thresholds=nothing)
    assert data.gather(tmp_path / "nothing", tables, manifest)[1].promise is None
