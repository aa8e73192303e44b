from tests.factories import make_receipt
from tests.output.data import BUNDLE, SCHEMA, make_predictions, plan_images, write_run
from tlray.output.parts import PartWriter
from tlray.output.plan import write_plan
from tlray.output.receipt import UpdateRecord, write_receipt
from tlray.output.rowset import RowSet
from tlray.prediction.update import EarlierOutput
from tlray.sources.listing import Selection, find_candidates


def test_an_update_keeps_what_is_unchanged(tmp_path):
    folder, old, new = tmp_path / "in", str(tmp_path / "old"), str(tmp_path / "new")
    folder.mkdir()
    for index in range(10):
        (folder / f"{index}.jpg").write_bytes(b"x" * (index + 1))
    asked = {"model_id": BUNDLE.model_id, "top_k": 0, "max_bytes": 1, "max_pixels": 1, "image_column": None}
    plan = write_plan(old, find_candidates([str(folder)], Selection()), {}, None)
    writer = PartWriter(old, plan, SCHEMA, 4, RowSet(10))
    parts = list(writer.add(make_predictions(range(9)))) + list(writer.add(make_predictions([9], status="TIMEOUT")))
    write_receipt(old, make_receipt(parts, config=asked))
    (folder / "2.jpg").write_bytes(b"changed")
    (folder / "4.jpg").unlink()
    (folder / "a.jpg").write_bytes(b"new")
    plan = write_plan(new, find_candidates([str(folder)], Selection()), {}, None)
    earlier = EarlierOutput(old, asked)
    kept = earlier.compare(plan)
    assert earlier.comparison == UpdateRecord(
        old, new=1, changed=2, kept=7, vanished=1
    )  # 2.jpg, and 9.jpg, which was out of reach
    rows = plan.read(0, 10)
    assert [rows["uri"][row].as_py()[-5:] for row in kept.find_missing(0, 10)] == ["2.jpg", "9.jpg", "a.jpg"]
    answers = earlier.take(rows.take([6, 0, 3]))
    assert answers["row_id"].to_pylist() == [6, 0, 3]
    assert answers["status"].to_pylist() == ["ok", "ok", "EMPTY"]
    retried = EarlierOutput(old, asked).compare(plan, {"EMPTY"})  # row 3 there, 3.jpg
    assert len(kept) - len(retried) == 1
    assert rows["uri"][int(retried.find_missing(0, 10)[1])].as_py().endswith("3.jpg")
    other = EarlierOutput(old, {**asked, "model_id": "n"})
    assert len(other.compare(plan)) == 0
    assert other.comparison.changed == 9


def test_a_part_of_other_options_is_said_once_and_nothing_is_copied(tmp_path, capsys):
    plan, _ = write_run(tmp_path / "old", tmp_path / "in", config={"top_k": 3, "precision": "auto"})
    earlier = EarlierOutput(str(tmp_path / "old"), {"top_k": 0, "precision": "float32"})
    assert "another top_k and precision" in " ".join(capsys.readouterr().out.split())
    assert len(earlier.compare(plan)) == 0
    assert (earlier.comparison.new, earlier.comparison.changed, earlier.comparison.vanished) == (0, 10, 0)


def test_an_unchanged_archive_is_copied_whole_under_new_row_ids(tmp_path):
    write_run(tmp_path / "old", tmp_path / "in")
    (tmp_path / "in" / "+.jpg").write_bytes(b"first in order")
    plan = plan_images(tmp_path / "new", tmp_path / "in")
    earlier = EarlierOutput(str(tmp_path / "old"), {})
    kept = earlier.compare(plan)
    assert kept.find_missing(0, 11).tolist() == [0]
    copied = earlier.take(plan.read(1, 10))
    assert copied["row_id"].to_pylist() == list(range(1, 11))
    assert copied["status"].to_pylist() == ["ok"] * 3 + ["EMPTY"] + ["ok"] * 6
    assert copied["retries"].to_pylist() == [0] * 10
