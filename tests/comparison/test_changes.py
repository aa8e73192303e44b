import pyarrow as pa

from tlray.comparison import changes as module
from tlray.comparison.changes import Change, Changes, make_empty_list, read_changes


def make_rows(*rows):
    """A table of `(row_id, class name or None, probability)` rows."""
    return pa.table(
        {
            "row_id": pa.array([row[0] for row in rows], pa.int64()),
            "uri": [f"/{row[0]}.jpg" for row in rows],
            "status": ["EMPTY" if row[1] is None else "ok" for row in rows],
            "class_name": pa.array([row[1] for row in rows], pa.string()),
            "probability": pa.array([row[2] for row in rows], pa.float32()),
        }
    )


def test_no_change_is_an_empty_list_of_the_same_columns():
    changes = Changes()
    changes.add(make_rows((0, "a", 0.5)), make_rows((0, "a", 0.75)))
    assert (changes.same, changes.changed) == (1, 0)
    assert changes.list_changes() == make_empty_list()
    assert (changes.differences, changes.largest_difference) == (0.25, 0.25)
    changes.add(make_rows((1, "a", 0.5)), make_rows((1, "b", 0.75)))
    assert changes.list_changes().schema == make_empty_list().schema


def test_a_row_without_a_label_has_its_status_instead():
    changes = Changes()
    changes.add(make_rows((5, None, None)), make_rows((5, "b", 0.75)))
    assert read_changes(changes.list_changes()) == [Change(5, "/5.jpg", "EMPTY", "b", None, 0.75)]
    assert changes.gained == {"EMPTY": 1}


def test_of_many_changes_the_surest_are_listed(monkeypatch):
    monkeypatch.setattr(module, "MAX_LISTED", 3)
    changes = Changes()
    for row in range(50):
        changes.add(make_rows((row, "a", 0.5 + row / 128)), make_rows((row, "b", 0.95)))
    assert [change.row_id for change in read_changes(changes.list_changes())] == [49, 48, 47]
    assert changes.changed == 50
    # labels that are lost or gained have room of their own
    for row in range(50, 60):
        changes.add(make_rows((row, None, None)), make_rows((row, "b", row / 100)))
    assert [change.row_id for change in read_changes(changes.list_changes())] == [49, 48, 47, 59, 58, 57]
