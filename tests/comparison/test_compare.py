import io
import json
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.outputs import label, make_image
from tests.report.pages import parse
from tlray.cli.commands import main
from tlray.comparison import compare as module
from tlray.comparison.compare import compare
from tlray.comparison.summary import ChangedClass, Transition
from tlray.config import CompareConfig
from tlray.errors import ConfigError, OutputError
from tlray.metrics.intervals import wilson

CLASSES = ["glass", "<b>metal</b>", "paper"]
OLD, NEW = "a" * 64, "b" * 64


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for index in range(100):
        (folder / f"{index:03d}.png").write_bytes(make_image((index, 0, 0)))
    return folder


@pytest.fixture
def outputs(images, tmp_path):
    """Of 100 rows 0 to 9 lose their label, 10 to 14 get one, 15 to 19 have none, 20 to 39 go from glass to metal."""
    old = label(
        tmp_path / "old",
        [images],
        lambda row: None if 10 <= row < 20 else 0 if row < 60 else 2,
        CLASSES,
        probability=lambda row: 0.5 + row / 1000,
        model_id=OLD,
    )
    new = label(
        tmp_path / "new",
        [images],
        lambda row: None if row < 10 or 15 <= row < 20 else 1 if 20 <= row < 40 else 0 if row < 60 else 2,
        CLASSES,
        rows_per_part=17,
        probability=lambda row: 0.6 + row / 1000,
        model_id=NEW,
    )
    return old, new


def run(outputs, **options):
    return compare(CompareConfig(old=outputs[0], new=outputs[1], **options))


def test_every_change_is_counted(outputs):
    summary = run(outputs)
    assert (summary.compared, summary.changed, summary.unlabelled) == (100, 35, 5)
    assert (summary.labelled_by_both, summary.same) == (80, 60)
    assert (summary.lost, summary.gained) == ({"CORRUPT": 10}, {"CORRUPT": 5})
    assert summary.transitions == [Transition("glass", "<b>metal</b>", 20)]
    assert summary.by_class == {
        "glass": ChangedClass(old=40, new=20, kept=20),
        "<b>metal</b>": ChangedClass(old=0, new=20, kept=0),
        "paper": ChangedClass(old=40, new=40, kept=40),
    }
    assert summary.agreement == 0.75
    assert (summary.agreement_low, summary.agreement_high) == wilson(60, 80)
    assert summary.mean_difference == pytest.approx(0.1, abs=1e-6)
    assert summary.largest_difference == pytest.approx(0.1, abs=1e-6)
    assert (summary.only_old, summary.only_new) == (0, 0)
    assert (summary.old_model_id, summary.new_model_id) == (OLD, NEW)
    assert summary.output is None


def test_an_output_is_like_itself(outputs):
    summary = run((outputs[0], outputs[0]))
    assert (summary.changed, summary.agreement, summary.transitions) == (0, 1.0, [])
    assert summary.exit_code == 0


@pytest.mark.parametrize(
    ("most", "code"), [(1.0, 0), (0.37, 0), (0.36, 1), (35, 0), (34, 1), (0.0, 1)]
)  # 35 of 95 labels change
def test_too_many_changes_end_with_one(outputs, most, code):
    assert run(outputs, max_changed=most).exit_code == code


def test_the_result_is_a_page_a_record_and_a_list(outputs, tmp_path):
    summary = run(outputs, output=str(tmp_path / "result"))
    folder = Path(summary.output)
    assert sorted(path.name for path in folder.iterdir()) == ["changes.parquet", "compare.json", "report.html"]
    told = json.loads((folder / "compare.json").read_text())
    assert told["changed"] == 35
    assert told["transitions"] == [{"old": "glass", "new": "<b>metal</b>", "rows": 20}]
    changes = pq.read_table(folder / "changes.parquet").to_pylist()
    assert len(changes) == 35
    # the surest first: of rows 20 to 39, the old probability is the lower one and grows with the row
    assert [row["row_id"] for row in changes[:20]] == list(range(39, 19, -1))
    assert changes[0]["old_class_name"] == "glass"
    assert changes[0]["new_class_name"] == "<b>metal</b>"
    assert changes[0]["uri"].endswith("039.png")
    assert {(row["old_status"], row["new_status"]) for row in changes[20:]} == {("ok", "CORRUPT"), ("CORRUPT", "ok")}
    parser, text = parse((folder / "report.html").read_bytes())
    assert "36.8% of the labels change 35 of the 95 rows" in " ".join(text.split())
    assert "75.00% of the 80 rows that both label the same label" in text
    assert "10 rows lose their label (CORRUPT 10)" in text
    assert parser.tags.count("img") == 20 + 6
    assert told["listed"] == 35
    with pytest.raises(OutputError, match="--output takes a new folder"):
        run(outputs, output=str(tmp_path / "result"))
    with pytest.raises(OutputError, match="lies in labels, which readers take whole"):
        run(outputs, output=f"{outputs[1]}/labels/result")


def test_an_interrupted_comparison_leaves_nothing_and_can_be_repeated(outputs, tmp_path, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "_make_pictures", stop)
        with pytest.raises(KeyboardInterrupt):
            run(outputs, output=str(tmp_path / "result"))
    assert not (tmp_path / "result").exists()
    assert run(outputs, output=str(tmp_path / "result")).changed == 35
    assert len(list((tmp_path / "result").iterdir())) == 3


def test_members_of_packed_archives_are_not_unpacked_for_their_pictures(tmp_path):
    with tarfile.open(tmp_path / "set.tar.gz", "w:gz") as tar:
        for index in range(4):
            data = make_image((index, 0, 0))
            info = tarfile.TarInfo(f"{index}.png")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    old = label(tmp_path / "old", [tmp_path / "set.tar.gz"], lambda row: 0, CLASSES)
    new = label(tmp_path / "new", [tmp_path / "set.tar.gz"], lambda row: 1, CLASSES)
    run((old, new), output=str(tmp_path / "result"))
    parser, text = parse((tmp_path / "result" / "report.html").read_bytes())
    assert parser.tags.count("img") == 0
    assert "no image" in text


def test_rows_are_matched_by_their_addresses_in_any_order(images, tmp_path):
    names = [str(images / f"{index:03d}.png") for index in range(60)]
    old = label(tmp_path / "old", names[:50], lambda row: row % 3, CLASSES, rows_per_part=7)
    later = list(reversed(names[12:]))
    new = label(tmp_path / "new", later, lambda row: (59 - row) % 3, CLASSES, rows_per_part=9)
    summary = run((old, new), output=str(tmp_path / "result"))
    assert summary.compared == 38
    assert summary.changed == 0
    assert (summary.only_old, summary.only_new) == (12, 10)
    text = parse(Path(summary.output, "report.html").read_bytes())[1]
    assert "Only old 12" in " ".join(text.split())
    assert "000.png" in text
    assert "059.png" in text


def test_models_may_have_other_classes(images, tmp_path):
    old = label(tmp_path / "old", [images], lambda row: 0, ["cat"])
    new = label(tmp_path / "new", [images], lambda row: row % 2, ["dog", "cat"])
    summary = run((old, new))
    assert summary.transitions == [Transition("cat", "dog", 50)]
    assert list(summary.by_class) == ["cat", "dog"]


def test_what_cannot_be_compared_is_said(outputs, images, tmp_path):
    with pytest.raises(OutputError, match="tlray compare takes the output of a finished tlray predict; got"):
        run((outputs[0], str(tmp_path / "none")))
    (tmp_path / "other.png").write_bytes(make_image("red"))
    other = label(tmp_path / "other", [tmp_path / "other.png"], lambda row: 0, CLASSES)
    with pytest.raises(OutputError, match="have no input in common"):
        run((outputs[0], other))
    for most in (-1, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match=f"--max-changed takes a share up to 1 or a count above 1; got {most:g}"):
            run(outputs, max_changed=most)


def test_the_command_prints_and_returns_its_code(outputs, capsys):
    assert main(["compare", *outputs, "--max-changed", "0.5"]) == 0
    out = capsys.readouterr().out
    assert "35 of 95 labels (36.84%)" in out
    assert "glass to <b>metal</b> 20x" in out
    assert main(["compare", *outputs, "--max-changed", "0.1"]) == 1
    assert "more labels change than --max-changed 0.1 allows" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["compare", outputs[0]])
