import io
import shutil
import tarfile

import pytest

from tests.factories import make_receipt
from tests.outputs import label, make_image
from tests.report.pages import parse
from tlray import console
from tlray.comparison.compare import compare
from tlray.config import CompareConfig
from tlray.notebook import Card, Picture, Shown, name_classes
from tlray.output.receipt import read_receipt
from tlray.prediction.summary import PredictSummary


def test_a_card_is_one_line_as_text():
    card = Card("Bundle", [("classes", "2 (a, b)"), ("accuracy", "0.9")])
    assert card.format_line() == "<Bundle: classes 2 (a, b), accuracy 0.9>"
    long = Card("Bundle", [(f"figure {number}", "x" * 30) for number in range(20)])
    assert len(long.format_line()) <= 202
    assert long.format_line().endswith("x>")


def test_a_card_is_harmless_html():
    card = Card("T", [("<b>name</b>", "<script>")], {"<i>a</i>": 0.75, "b": 0.25})
    parser, text = parse(card.draw([Picture('data:image/jpeg;base64,"><script>', "<u>caption</u>")]).encode())
    assert "script" not in parser.tags
    assert not {"b", "i", "u"} & set(parser.tags)
    assert parser.tags.count("img") == 1
    for part in ("<b>name</b>", "<script>", "<i>a</i>", "75.0%", "25.0%", "<u>caption</u>"):
        assert part in text


def test_of_many_classes_the_most_frequent_are_drawn():
    text = parse(Card("T", [], {f"class {number}": number / 1000 for number in range(40)}).draw().encode())[1]
    assert "class 39" in text
    assert "class 27" not in text
    assert "and 28 more classes" in text


def test_an_object_shows_its_card():
    class Thing(Shown):
        def describe(self):
            return Card("Thing", [("a", "1")])

    assert repr(Thing()) == "<Thing: a 1>"
    assert "<strong>Thing</strong>" in Thing()._repr_html_()


def test_classes_are_named_up_to_four():
    assert name_classes(["a", "b"]) == "2 (a, b)"
    assert name_classes([str(number) for number in range(5000)]) == "5,000 (0, 1, 2, 3, ...)"


@pytest.fixture
def output(tmp_path):
    (tmp_path / "images").mkdir()
    for index in range(30):
        (tmp_path / "images" / f"{index:02d}.png").write_bytes(make_image((index, 0, 0)))
    return label(tmp_path / "labels", [tmp_path / "images"], lambda row: None if row < 3 else row % 2, ["a", "b"])


def test_a_finished_prediction_shows_counts_and_pictures(output):
    summary = PredictSummary(output, read_receipt(output), 0, already_done=False)
    assert repr(summary).startswith("<Labelled: labelled 27 of 30 images, failed 3 (CORRUPT 3), labels ")
    html = summary._repr_html_()
    assert html.count("<img") == 8
    assert "a 25%" in html or "b 25%" in html


def test_a_prediction_without_its_folder_still_shows_its_counts(output, tmp_path):
    summary = PredictSummary(str(tmp_path / "none"), make_receipt(planned=5, labelled=5), 0, already_done=True)
    assert "Already labelled" in summary._repr_html_()
    gone = PredictSummary(output, read_receipt(output), 0, already_done=True)
    shutil.rmtree(f"{output}/labels")
    assert "27 of 30 images" in gone._repr_html_()


def test_text_is_never_read_from_the_store(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("read")

    monkeypatch.setattr("tlray.prediction.summary.read_shares", refuse)
    assert "Labelled" in repr(
        PredictSummary("s3://b/labels", make_receipt(planned=5, labelled=5), 0, already_done=False)
    )


def test_archives_are_not_unpacked_for_a_card(tmp_path):
    with tarfile.open(tmp_path / "set.tar.gz", "w:gz") as tar:
        info = tarfile.TarInfo("a.png")
        info.size = len(make_image("red"))
        tar.addfile(info, io.BytesIO(make_image("red")))
    folder = label(tmp_path / "labels", [tmp_path / "set.tar.gz"], lambda row: 0, ["a"])
    assert "<img" not in PredictSummary(folder, read_receipt(folder), 0, already_done=False)._repr_html_()


def test_a_comparison_shows_its_transitions(output):
    summary = compare(CompareConfig(old=output, new=output))
    assert (
        repr(summary) == "<Compared: changed 0 of 27 labels (0.00%), agreement 1.0000 (95% interval 0.8754 to 1.0000)>"
    )
    assert "Compared" in summary._repr_html_()


class Shell:
    pass


class ZMQInteractiveShell(Shell):
    pass


class ColabShell(ZMQInteractiveShell):
    pass


@pytest.mark.parametrize(
    ("shell", "expected"), [(Shell(), False), (ZMQInteractiveShell(), True), (ColabShell(), True), (None, False)]
)
def test_a_notebook_is_told_by_its_shell(monkeypatch, shell, expected):
    module = type("IPython", (), {"get_ipython": staticmethod(lambda: shell)})
    monkeypatch.setitem(console.sys.modules, "IPython", module)
    assert console.is_notebook() is expected


def test_progress_in_a_notebook_is_one_line_that_moves(monkeypatch):
    written = io.StringIO()
    monkeypatch.setattr(console, "is_notebook", lambda: True)
    monkeypatch.setattr(console, "_MOVE_INTERVAL_S", 0.0)
    monkeypatch.setattr(console.sys, "stdout", written)
    with console.Stage("predict", 100) as stage:
        for _ in range(10):
            stage.advance(10)
        console.say("a message")
    with console.Stage("write", 5) as stage:
        stage.advance(5)
    lines = [line.split("\r")[-1].rstrip() for line in written.getvalue().split("\n")]
    assert lines[0] == "a message"
    assert lines[1].startswith("predict: 100/100 images")
    assert lines[2].startswith("write: 5/5 images")
    assert lines[3:] == [""]
