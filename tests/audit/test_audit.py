import base64
import csv
import io
import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from tests.outputs import label, make_image
from tests.report.pages import parse
from tlray.audit import draw as drawing
from tlray.audit.measure import measure
from tlray.cli.commands import main
from tlray.config import AuditConfig
from tlray.errors import DataError, OutputError
from tlray.images.limits import Limits
from tlray.metrics.classification import ConfusedPair
from tlray.output.shares import FORMAT as SHARES_FORMAT
from tlray.output.shares import Shares, write_shares
from tlray.report.thumbnails import make_thumbnail
from tlray.sources.labelled import scan

CLASSES = ["glass", "=HYPERLINK(1)", "<b>metal</b>"]
HOSTILE = [
    "<script>alert(1)<script>.png",
    "a,b.png",
    'qu"ote.png',
    "new\nline.png",
    "=1+2.png",
    "'x.png",
    "\u202ea.png",
]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """300 images, 293 of them plainly named."""
    folder = tmp_path_factory.mktemp("images")
    for name in HOSTILE:
        (folder / name).write_bytes(make_image("red"))
    for index in range(293):
        (folder / f"{index:03d}.png").write_bytes(make_image((index % 256, 0, 0)))
    return folder


@pytest.fixture
def labels(images, tmp_path):
    """Of 300 rows 240, 50 and 7 have a class each, and 3 failed."""
    return label(
        tmp_path / "labels", [images], lambda row: None if row < 3 else 2 if row < 10 else int(row < 60), CLASSES
    )


def audit(labels, **options):
    return drawing.draw(AuditConfig(labels=labels, **options))


def read_form(labels, name="sample.csv"):
    with Path(labels, "audit", name).open(newline="") as file:
        return list(csv.DictReader(file))


def fill(labels, answer, path=None, name="sample.csv", **dialect):
    """Write a filled form; `answer(row)` is what a reviewer types."""
    rows = [{**row, "correct_label": answer(row)} for row in read_form(labels, name)]
    path = path or f"{labels}/audit/{name}"
    with Path(path).open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], **dialect)
        writer.writeheader()
        writer.writerows(rows)
    return path


def count(labels, path, **options):
    return measure(AuditConfig(labels=labels, answers=path, **options))


def test_a_sample_is_reproducible_and_grows_by_rounds(labels, images, tmp_path):
    drawn = audit(labels, sample=60)
    assert drawn.pictures == 60
    rows = read_form(labels)
    assert list(rows[0]) == ["row_id", "uri", "class_name", "probability", "correct_label"]
    names = [row["class_name"] for row in rows]
    assert len(rows) == 60
    assert names == sorted(names, key=["glass", "'=HYPERLINK(1)", "<b>metal</b>"].index)
    assert names.count("<b>metal</b>") >= 2  # 7 of 297 rows, of which 5 are expected
    row_ids = [int(row["row_id"]) for row in rows]
    assert len(set(row_ids)) == 60
    assert min(row_ids) >= 3  # the first rows failed
    assert all(row["probability"] == f"{0.25 + int(row['row_id']) / 1e4:.6f}" for row in rows)
    assert all(row["correct_label"] == "" for row in rows)
    assert {row["uri"] for row in rows} <= {str(path) for path in images.iterdir()}
    # the same command does nothing, even where the form is half filled
    fill(labels, lambda row: ".")
    assert audit(labels, sample=60).already_drawn
    assert read_form(labels)[0]["correct_label"] == "."
    with pytest.raises(OutputError, match=r"another sample \(--seed 0 there, 1 asked"):
        audit(labels, sample=60, seed=1)
    with pytest.raises(OutputError, match=r"another sample \(--sample 60 there, 59 asked\)"):
        audit(labels, sample=59)
    again = audit(labels, sample=60, output=str(tmp_path / "again"))
    assert again.sample.rows == drawn.sample.rows
    other = audit(labels, sample=60, output=str(tmp_path / "other"), seed=1)
    assert other.sample.rows != drawn.sample.rows
    # a larger sample is another round, which leaves the first form alone
    larger = audit(labels, sample=100)
    assert larger.sample.rounds == [60, 100]
    assert larger.pictures == 40
    assert read_form(labels)[0]["correct_label"] == "."
    more = read_form(labels, "sample-2.csv")
    assert len(more) == 40
    assert not {int(row["row_id"]) for row in more} & set(row_ids)
    assert Path(larger.page).name == "review-2.html"
    assert [Path(path).name for path in larger.forms] == ["sample.csv", "sample-2.csv"]
    assert audit(labels, sample=100).already_drawn
    # all rows and no more
    assert len(audit(labels, sample=1000).sample.rows) == 297
    assert audit(labels, sample=2000).already_drawn


def test_rounds_go_on_until_the_intervals_are_narrow(labels):
    audit(labels, sample=60)
    forms = [fill(labels, lambda row: ".")]
    summary = count(labels, tuple(forms), until=0.02)
    assert summary.verdict.startswith("not reached; about ")
    for number in range(2, 10):
        if summary.next_round is None:
            break
        assert summary.next_round.form == f"{labels}/audit/sample-{number}.csv"
        # without an answer to the new rows, nothing more is drawn
        assert f"review sample-{number}.csv first" in count(labels, tuple(forms), until=0.02).verdict
        forms.append(fill(labels, lambda row: ".", name=f"sample-{number}.csv"))
        summary = count(labels, tuple(forms), until=0.02)
    assert summary.verdict == "reached: no class's share has an interval wider than 0.02"
    assert summary.width <= 0.02
    assert len(forms) > 1
    assert summary.reviewed == len(summary_rows(labels))


def summary_rows(labels):
    return json.loads(Path(labels, "audit", "sample.json").read_text())["rows"]


def test_what_cannot_be_sampled_is_said(labels, images, tmp_path):
    with pytest.raises(OutputError, match="a finished tlray predict"):
        audit(str(tmp_path), sample=5)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("x")
    with pytest.raises(OutputError, match=r"something else \(mine\.txt\)"):
        audit(labels, sample=5, output=str(tmp_path / "taken"))
    failed = label(tmp_path / "failed", [images], lambda row: None, CLASSES)
    with pytest.raises(OutputError, match="all rows of this one failed"):
        audit(failed, sample=5)
    part = next((tmp_path / "labels" / "labels").iterdir())
    part.write_bytes(part.read_bytes()[:50])
    with pytest.raises(OutputError, match=f"{part.name} of .* cannot be read.*tlray verify"):
        audit(labels, sample=5)


def test_the_page_holds_every_drawn_row(labels):
    drawn = audit(labels, sample=297)
    text = Path(labels, "audit", "review.html").read_text(encoding="utf-8")
    data = json.loads(re.search('<script type="application/json" id="data">(.*?)</script>', text)[1])
    assert [row["id"] for row in data["rows"]] == [row.row_id for row in drawn.sample.rows]
    assert text.count("data:image/jpeg;base64,") == drawn.pictures == 297
    assert not any("\u202e" in row["uri"] + row["file"] for row in data["rows"])


def test_thumbnails_keep_their_proportions():
    def open_uri(uri):
        return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))

    assert open_uri(make_thumbnail(make_image("blue"), 128)).size == (128, 64)
    large = io.BytesIO()
    Image.new("L", (300, 4000)).save(large, "PNG")
    assert open_uri(make_thumbnail(large.getvalue(), 128)).size == (10, 128)
    assert make_thumbnail(b"no image", 128) is None
    assert make_thumbnail(large.getvalue(), 128, Limits(max_pixels=1000)) is None


def test_a_filled_form_gives_counts_and_quality_by_class_and_over_all(labels):
    drawn = audit(labels, sample=60).sample.list_round(1)
    wrong = {"glass": ["=HYPERLINK(1)", "=HYPERLINK(1)", "?"], "=HYPERLINK(1)": ["glass"], "<b>metal</b>": []}
    answers = {}
    for row in drawn:
        left = wrong[row.class_name]
        answers[str(row.row_id)] = left.pop() if left else "."
    summary = count(labels, fill(labels, lambda row: answers[row["row_id"]]))
    glass, link, metal = summary.by_class.values()
    for one, rows, errors in ((glass, 240, 3), (link, 50, 1), (metal, 7, 0)):
        assert (one.rows, one.sampled - one.right) == (rows, errors)
        assert one.reviewed == one.sampled
        assert one.precision_low <= one.precision <= one.precision_high
        assert one.recall_low <= one.recall <= one.recall_high
        assert one.count_low <= one.count <= one.count_high
    assert glass.precision < 1
    assert link.count > 50  # more of them hide among the glass than are none
    assert (summary.reviewed, summary.right, summary.none_of_them) == (60, 56, 1)
    assert 0 < summary.no_class_low < summary.no_class < summary.no_class_high < 0.2
    assert summary.accuracy_low < summary.accuracy < summary.accuracy_high
    assert summary.covered == 1.0
    assert summary.most_confused == [
        ConfusedPair("=HYPERLINK(1)", "glass", 2),
        ConfusedPair("glass", "=HYPERLINK(1)", 1),
    ]
    told = json.loads(Path(labels, "audit", "audit.json").read_text())
    assert told["by_class"]["glass"]["count"] == glass.count
    assert told["accuracy"] == summary.accuracy
    assert not {"folder", "verdict", "next_round"} & set(told)
    page, _ = parse(Path(labels, "audit", "report.html").read_bytes())
    text = " ".join(" ".join(page.text).split())
    assert "of the labels are right" in text
    assert "<b>metal</b>" in page.text
    assert "PPI++" in text


def test_shares_by_label_shift_stand_beside_the_audited_ones(labels):
    audit(labels, sample=60)
    path = fill(labels, lambda row: ".")
    assert count(labels, path).by_class["glass"].shifted_share is None
    assert "by label shift" not in Path(labels, "audit", "report.html").read_text()
    shares = dict(zip(CLASSES, (0.6, 0.3, 0.1), strict=True))
    write_shares(labels, Shares(SHARES_FORMAT, "run", "m" * 64, 297, shares, shares))
    assert [one.shifted_share for one in count(labels, path).by_class.values()] == [0.6, 0.3, 0.1]
    assert "by label shift" in Path(labels, "audit", "report.html").read_text()


def test_corrections_are_a_training_list(labels, images):
    audit(labels, sample=297)
    by_index = {"glass": "glass", "'=HYPERLINK(1)": "=HYPERLINK(1)", "<b>metal</b>": "glass"}

    def answer(row):
        return "?" if row["row_id"] == "50" else by_index[row["class_name"]]

    summary = count(labels, fill(labels, answer))
    assert summary.corrections == 296
    found = scan(f"{labels}/audit/corrections.csv")
    assert found.classes == ("=HYPERLINK(1)", "glass")
    assert set(found.table["uri"].to_pylist()) <= {str(path) for path in images.iterdir()}
    assert found.table.num_rows == 296
    named = {uri.rpartition("/")[2] for uri in found.table["uri"].to_pylist()}
    assert set(HOSTILE) - named == {"'x.png"}  # it sorts first, and the first rows failed
    assert scan(f"{labels}/audit/corrections.csv", CLASSES).classes == tuple(CLASSES)


@pytest.mark.parametrize(("name", "mode", "listed"), [("set.tar", "w", 11), ("set.tar.gz", "w:gz", 1)])
def test_members_of_archives_are_trained_on_where_a_list_can_name_them(tmp_path, images, name, mode, listed):
    with tarfile.open(tmp_path / name, mode) as tar:
        for index in range(10):
            info = tarfile.TarInfo(f"{index}.png")
            data = make_image("green")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    (tmp_path / "up").mkdir()
    inputs = [tmp_path / name, f"{tmp_path}/up/../one.png"]
    (tmp_path / "one.png").write_bytes(make_image("blue"))
    labels = label(tmp_path / "labels", inputs, lambda row: row % 2, CLASSES)
    assert audit(labels, sample=11).pictures == 11
    summary = count(labels, fill(labels, lambda row: "."))
    assert (summary.reviewed, summary.inside, summary.corrections) == (11, 11 - listed, listed)
    lines = Path(labels, "audit", "corrections.csv").read_text().splitlines()
    assert f"{tmp_path}/one.png,glass" in lines
    assert (f"{tmp_path}/{name}#0.png" in [line.partition(",")[0] for line in lines]) == (listed == 11)
    if listed == 11:
        assert scan(f"{labels}/audit/corrections.csv", CLASSES).table.num_rows == 11


def test_a_class_nobody_looked_at_is_told_apart(labels, capsys):
    audit(labels, sample=120)
    summary = count(labels, fill(labels, lambda row: "." if row["class_name"] == "glass" else " "))
    link = summary.by_class["=HYPERLINK(1)"]
    assert (link.count, link.precision, link.recall) == (None, None, None)
    assert (link.precision_low, link.precision_high) == (0, 1)
    assert summary.covered < 0.9
    text = Path(labels, "audit", "report.html").read_text()
    assert "misleads" not in text
    assert "not reviewed" in text
    assert "some predicted classes were not reviewed" in " ".join(text.lower().split())


def test_what_may_hold_answers_is_never_written_over(labels, tmp_path):
    audit(labels, sample=60)
    taken = Path(labels, "audit", "sample-2.csv")
    taken.write_text("row_id,correct_label\n5,.\n")
    with pytest.raises(OutputError, match=r"sample-2\.csv may hold somebody's answers"):
        audit(labels, sample=100)
    assert taken.read_text() == "row_id,correct_label\n5,.\n"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "sample.csv").write_text("mine")
    with pytest.raises(OutputError, match=r"sample\.csv may hold somebody's answers"):
        audit(labels, sample=60, output=str(tmp_path / "other"))
    taken.unlink()
    assert audit(labels, sample=100).sample.rounds == [60, 100]


def test_the_next_command_names_the_forms_that_were_given(labels, tmp_path):
    audit(labels, sample=60)
    path = fill(labels, lambda row: ".", str(tmp_path / "mine.csv"))
    summary = count(labels, path, until=0.001)
    expected = f"tlray audit {labels} --answers {path} {labels}/audit/sample-2.csv --until 0.001"
    assert summary.next_round.command == expected


@pytest.mark.parametrize("dialect", [{"delimiter": ";"}, {"delimiter": "\t"}, {"quoting": csv.QUOTE_ALL}])
def test_forms_come_back_as_spreadsheets_save_them(labels, tmp_path, dialect):
    audit(labels, sample=60)
    path = fill(labels, lambda row: ".", str(tmp_path / "mine.csv"), **dialect)
    Path(path).write_bytes(b"\xef\xbb\xbf" + Path(path).read_bytes())
    assert count(labels, path).right == 60


def test_bad_answers_are_named_all_together(labels, tmp_path):
    audit(labels, sample=60)
    answers = iter(["plastic", "Glass", *["."] * 58])
    path = fill(labels, lambda row: next(answers))
    first = read_form(labels)[2]["row_id"]
    with Path(path).open("a") as file:
        file.write(f"100000,x,glass,0.5,.\n,,,,.\n{first},x,glass,0.5,?\n")
    with pytest.raises(DataError) as caught:
        count(labels, path)
    message = str(caught.value)
    assert "row_ids that are not in the sample (100000, an empty one)" in message
    assert "'plastic' in row" in message
    assert "'Glass' in row" in message
    assert "classes: glass, =HYPERLINK(1), <b>metal</b>" in message
    assert f"two answers for one row (row {first})" in message


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "without row_id and correct_label"),
        (b"row_id,uri\n1,x\n", r"without correct_label \(its columns: row_id, uri\)"),
        (b"row_id,correct_label\n", "no row of .* has a correct_label"),
        ("row_id,correct_label\n1,gl\xe4s\n".encode("latin-1"), "another encoding"),
    ],
)
def test_a_file_that_is_no_filled_form_is_refused(labels, tmp_path, data, expected):
    audit(labels, sample=60)
    (tmp_path / "mine.csv").write_bytes(data)
    with pytest.raises(DataError, match=expected):
        count(labels, str(tmp_path / "mine.csv"))


def test_the_command_says_what_is_wrong_and_what_it_found(labels, tmp_path, capsys):
    assert main(["audit", labels]) == 2
    assert "got neither" in capsys.readouterr().err
    assert main(["audit", labels, "--sample", "0"]) == 2
    assert "--sample takes 1 to 10,000; got 0" in capsys.readouterr().err
    assert main(["audit", labels, "--answers", str(tmp_path / "none.csv")]) == 2
    assert "holds no sample" in capsys.readouterr().err
    assert main(["audit", labels, "--sample", "60"]) == 0
    assert "60 of 297" in capsys.readouterr().out
    assert main(["audit", labels, "--answers", str(tmp_path / "none.csv")]) == 2
    assert "none.csv cannot be read" in capsys.readouterr().err
    assert main(["audit", labels, "--answers", fill(labels, lambda row: ".")]) == 0
    assert "1.0000 of the labels are right (95% interval 0.9" in capsys.readouterr().out


def test_neither_ray_nor_tensorflow_is_needed(labels):
    script = (
        "import sys; from tlray.cli import main\n"
        f"main(['audit', {labels!r}, '--sample', '10'])\n"
        "print('imported:', [name for name in ('ray', 'tensorflow', 'keras') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert "imported: []" in result.stdout, result.stdout


def test_an_archive_that_is_reviewed_whole_is_known(labels):
    audit(labels, sample=297)
    summary = count(labels, fill(labels, lambda row: "."))
    assert (summary.accuracy, summary.accuracy_low) == (1.0, 1.0)
    assert [one.count for one in summary.by_class.values()] == [240, 50, 7]
    assert ">100.0%<" in Path(labels, "audit", "report.html").read_text()
