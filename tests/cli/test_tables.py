from tests.factories import make_epoch
from tlray.cli import tables
from tlray.metrics.classification import ClassMeasurement


def test_every_epoch_is_a_line_and_the_kept_one_is_marked(lines):
    tables.print_history([make_epoch(1), make_epoch(2, val_loss=None, val_accuracy=None, seconds=0.0)], kept=1)
    printed = lines()
    assert printed[0] == "epoch phase loss accuracy val loss val accuracy images/s"
    assert printed[2].split() == ["1", "head", "0.5000", "0.8000", "0.6000", "0.7000", "50.0", "kept"]
    assert printed[3].split()[:6] == ["2", "head", "0.5000", "0.8000", "-", "-"]
    assert "kept" not in printed[3]


def test_no_history_prints_nothing(lines):
    tables.print_history([], kept=1)
    assert lines() == []


def test_a_long_list_of_classes_ends_with_the_number_of_others(lines):
    one = ClassMeasurement(0.5, 0.4, 0.6, 0.25, 0.2, 0.3, 1 / 3, 1200, 2)
    tables.print_classes({f"[{index}]": one for index in range(tables.MAX_CLASSES + 2)})
    printed = lines()
    assert printed[0].split() == ["class", "precision", "recall", "F1", "images"]
    assert printed[2].split() == ["[0]", "0.500", "0.250", "0.333", "1,200"]
    assert len(printed) == 2 + tables.MAX_CLASSES + 1
    assert printed[-1] == "... and 2 more classes"


def test_facts_are_printed_without_markup(lines):
    tables.print_facts([("a", "[bold]1"), ("long name", "2")])
    assert lines() == ["a [bold]1", "long name 2"]


def test_long_lists_of_names_are_shortened():
    assert tables.shorten(["a", "b"]) == "2: a, b"
    assert tables.shorten(["x"] * (tables.MAX_CLASSES + 1)) == "31: " + ", ".join(["x"] * 30) + ", ..."
