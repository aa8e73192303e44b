import io
import re
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.report import data
from tlray.output.receipt import Receipt
from tlray.output.schema import LABEL_FIELDS
from tlray.report import gather_prediction_facts, render_evaluation, render_prediction, render_training
from tlray.report import prediction_facts as facts_module
from tlray.report.charts import draw_class_bars, draw_learning_curve, draw_throughput
from tlray.report.page import clean, format_percent, shorten
from tlray.report.prediction_facts import PredictionFacts
from tlray.report.shift import Validation, read_validation
from tlray.report.thumbnails import make_thumbnail, make_thumbnails

VOID = {"meta", "img", "br"}


class Parser(HTMLParser):
    """Fails where tags don't balance; keeps what is asked about."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if "style" not in self.open:
            self.text.append(text)


def parse(page):
    text = page.decode()
    assert len(page) < 5_000_000
    parser = Parser()
    parser.feed(text)
    parser.close()
    assert not parser.open
    assert "script" not in parser.tags
    assert "<script" not in text
    assert "http:" not in text
    assert "https:" not in text
    assert not any(name.startswith("on") for name, _ in parser.attributes)
    for name, value in parser.attributes:
        if name in ("src", "href"):
            assert value.startswith(("data:image/jpeg;base64,", "#"))
        if name in ("title", "aria-label", "alt"):
            assert len(value) < 1000
    words = " ".join("".join(parser.text).split())
    assert not set(words) & {"\N{RIGHT-TO-LEFT OVERRIDE}", "\x00", "\x07", "\x1b"}
    return parser, words


def make_jpeg(width=320, height=120, colour=(200, 90, 20)):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "JPEG")
    return buffer.getvalue()


def read_nothing(keys):
    return iter([None] * len(keys))


def read_jpegs(keys):
    for _ in keys:
        yield make_jpeg()


def write_labels(folder, tables):
    (folder / "labels").mkdir(parents=True)
    parts, start = [], 0
    for table in tables:
        name = f"part-{start:012d}-{start + table.num_rows - 1:012d}.parquet"
        pq.write_table(table, folder / "labels" / name, row_group_size=300)
        parts.append({"name": name, "rows": table.num_rows, "sha256": "0" * 64})
        start += table.num_rows
    return parts


def make_labels(start, count, rng, classes=data.CLASSES, review=True, odd=True, uri="/a/{}.jpg"):
    guess = rng.integers(0, len(classes), count)
    probability = rng.random(count).astype(np.float32)
    ood_score = (rng.random(count) * 1.2).astype(np.float32)
    failed = rng.random(count) < 0.05
    columns = {
        "row_id": range(start, start + count),
        "uri": [uri.format(row) for row in range(start, start + count)],
        "status": ["CORRUPT" if bad else "ok" for bad in failed],
        "error": ["it is <b>broken</b>" if bad else None for bad in failed],
        "predicted_index": pa.array(guess, mask=failed),
        "class_name": pa.array([classes[index] for index in guess], mask=failed),
        "probability": pa.array(probability, mask=failed),
        "model_id": [data.MODEL_ID] * count,
        "needs_review": pa.array(probability < 0.5, mask=failed) if review else [None] * count,
        "ood_score": pa.array(ood_score, mask=failed) if odd else [None] * count,
    }
    nothing = [None] * count
    return pa.table({field.name: pa.array(columns.get(field.name, nothing), field.type) for field in LABEL_FIELDS})


def gather(folder, tables, manifest=None, timeline=()):
    parts = write_labels(folder, tables)
    rows = pa.concat_tables(tables)
    bad = sum(status != "ok" for status in rows["status"].to_pylist())
    receipt = Receipt(**data.make_receipt(rows.num_rows, {"CORRUPT": bad} if bad else {}, parts))
    return rows.to_pylist(), gather_prediction_facts(
        str(folder), receipt, manifest or data.make_manifest(), list(timeline)
    )


def make_facts(shares, confidence, images, validation):
    """Facts with given class shares and all confidences alike."""
    histogram = [0] * 20
    histogram[int(confidence * 20)] = images
    counts = {name: round(share * images) for name, share in shares.items()}
    receipt = data.make_receipt(images, {}, [])
    return PredictionFacts(
        receipt, tuple(shares), counts, histogram, confidence, images, False, None, None, {}, {}, {}, [], [], validation
    )


def test_the_training_page_tells_what_counts():
    manifest = data.make_manifest()
    uris = [f"/photos/{index}.jpg" for index in range(100)]
    label_errors = data.make_suspects(uris, data.CLASSES)
    asked = []

    def read(keys):
        asked.extend(keys)
        return read_jpegs(keys)

    page = render_training(manifest, data.make_history(), label_errors, read, finished="2026-11-23T06:03:35Z")
    parser, text = parse(page)
    test = manifest["metrics"]["test"]
    assert f"{test['accuracy']:.1%} of 179 test images got the right class" in text
    assert f"95% interval {test['accuracy_low']:.1%} to {test['accuracy_high']:.1%}" in text
    assert "at least 0.812: 95.3% of those are right, and 78.3% of the images are kept" in text
    assert "before calibration it was 9.4 points" in text
    assert "459 train, 81 validation, 179 test, 1 left out" in text
    assert "50 labels are contradicted by the images most like them and 50 pairs of images" in text
    assert "10 more are not shown" in text
    assert "2026-11-23 06:03 UTC" in text
    assert data.MODEL_ID in text
    assert len(asked) == len(set(asked))
    assert parser.tags.count("img") == 40 + 40
    assert parser.tags.count("svg") == 5


@pytest.mark.parametrize("test", [False, True])
@pytest.mark.parametrize("validation", [False, True])
def test_the_training_page_does_without_what_is_not_there(validation, test):
    manifest = data.make_manifest(validation=validation, test=test)
    history = data.make_history(0, 3)
    if not validation:
        history = [{**record, "val_loss": None, "val_accuracy": None} for record in history]
    _, text = parse(render_training(manifest, history, None, read_nothing))
    assert ("Nothing was measured" in text) == (not validation and not test)
    assert ("a little too hopeful" in text) == (validation and not test)
    assert ("From which probability" in text) == validation


def test_hostile_names_stay_text(tmp_path):
    uris = [data.HOSTILE_URI + str(index) for index in range(40)]
    manifest = data.make_manifest(data.HOSTILE)
    manifest["training"]["data"] = data.HOSTILE_URI
    pages = [render_training(manifest, data.make_history(), data.make_suspects(uris, data.HOSTILE), read_nothing)]
    evaluation = {**data.make_evaluation(data.HOSTILE, uris), "data": data.HOSTILE_URI}
    pages.append(render_evaluation(evaluation, read_nothing))
    classes = [name.encode("utf-8", "replace").decode() for name in data.HOSTILE]  # Parquet holds no lone surrogates
    labels = make_labels(0, 400, np.random.default_rng(0), classes, uri=data.HOSTILE_URI + "{}")
    facts = gather(tmp_path, [labels], data.make_manifest(classes))[1]
    pages.append(render_prediction(facts, read_nothing))
    for page in pages:
        _, text = parse(page)
        assert "script>" in text
        assert "no picture" in text


def test_the_evaluation_page_tells_what_counts():
    result = data.make_evaluation(data.CLASSES, [f"/p/{index}.jpg" for index in range(40)])
    parser, text = parse(render_evaluation(result, read_jpegs))
    assert f"{result['accuracy']:.1%} of 179 labelled images" in text
    assert "2 images could not be measured" in text
    assert "Macro F1" in text
    assert parser.tags.count("img") == 24 + 8 + 16
    cells = re.findall(r'class="same[^"]*" style="--s:([0-9.]+)', render_evaluation(result, read_jpegs).decode())
    shares = [row[index] / sum(row) for index, row in enumerate(result["confusion"])]
    assert [float(cell) for cell in cells] == pytest.approx(shares, abs=6e-4)


def test_many_classes_are_cut():
    classes = [f"class {index}" for index in range(400)]
    page = render_evaluation(data.make_evaluation(classes, [], images=2000), read_nothing)
    _, text = parse(page)
    assert "370 more are not shown" in text
    assert "only the pairs that are confused most" in text
    assert "confusion matrix" not in page.decode()
    parse(render_training(data.make_manifest(classes), data.make_history(), None, read_nothing))


def test_labels_are_read_back(tmp_path):
    rng = np.random.default_rng(0)
    tables = [make_labels(start, 1000, rng) for start in (0, 1000, 2000)]
    rows, facts = gather(tmp_path, tables)
    good = [row for row in rows if row["status"] == "ok"]
    assert facts.rows_read == 3000
    assert not facts.is_sample
    assert facts.labelled_read == len(good)
    assert facts.class_counts["metal"] == sum(row["class_name"] == "metal" for row in good)
    assert facts.needs_review == sum(row["needs_review"] for row in good)
    assert facts.odd == sum(row["ood_score"] > 1 for row in good)
    assert facts.confidence == pytest.approx(np.mean([row["probability"] for row in good]))
    assert facts.confidences == np.histogram([row["probability"] for row in good], 20, (0, 1))[0].tolist()
    ranked = sorted((row for row in good if row["class_name"] == "glass"), key=lambda row: row["probability"])
    assert [row.row_id for row in facts.least_sure["glass"]] == [row["row_id"] for row in ranked[:6]]
    assert [row.row_id for row in facts.surest["glass"]] == [row["row_id"] for row in ranked[:-7:-1]]
    odd = sorted(good, key=lambda row: -row["ood_score"])[:12]
    assert [row.row_id for row in facts.oddest] == [row["row_id"] for row in odd]
    bad = [row["uri"] for row in rows if row["status"] == "CORRUPT"]
    assert [failure.uri for failure in facts.failures["CORRUPT"]] == bad[:8]
    asked = []

    def read(row_ids):
        asked.extend(row_ids)
        return read_jpegs(row_ids)

    parser, text = parse(render_prediction(facts, read))
    assert asked == sorted(asked)
    assert parser.tags.count("img") == 6 * 12 + 12
    assert f"{len(good):,}" in text
    assert f"need review{facts.needs_review:,}" in text
    assert "it is <b>broken</b>" in text


def test_of_many_parts_a_sample_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(facts_module, "MAX_PARTS", 2)
    rng = np.random.default_rng(0)
    tables = [make_labels(start, 100, rng, review=False, odd=False) for start in range(0, 500, 100)]
    _, facts = gather(tmp_path, tables)
    assert facts.is_sample
    assert facts.rows_read == 200
    assert facts.needs_review is None
    assert facts.odd is None
    assert facts.oddest == []
    _, text = parse(render_prediction(facts, read_nothing))
    assert "of a sample: 200 of 500 rows" in text
    assert "need review" not in text


def test_a_run_without_a_label_has_a_page(tmp_path):
    table = make_labels(0, 3, np.random.default_rng(0))
    nothing = {"status": ["EMPTY"] * 3, "class_name": [None] * 3, "probability": [None] * 3}
    for name, values in nothing.items():
        index = table.schema.get_field_index(name)
        table = table.set_column(index, table.schema.field(name), pa.array(values, table.schema.field(name).type))
    _, facts = gather(tmp_path, [table])
    assert facts.confidence is None
    assert facts.verdict is None
    _, text = parse(render_prediction(facts, read_nothing))
    assert "Rows without a label" in text


def test_the_verdict_allows_for_noise():
    rng = np.random.default_rng(0)
    shares = {"a": 0.5, "b": 0.3, "c": 0.2}
    validation = Validation(80, shares, 0.9, [0] * 18 + [80, 0])
    fits = 0
    for _ in range(200):
        drawn = rng.multinomial(60, list(shares.values())) / 60
        facts = make_facts(dict(zip(shares, drawn, strict=True)), 0.9, 60, validation)
        fits += facts.shift.fits
    assert fits >= 198
    same = make_facts(shares, 0.9, 10_000, validation)
    assert same.verdict == "Classes and confidence look like those of the validation images."
    moved = make_facts({"a": 0.05, "b": 0.15, "c": 0.8}, 0.9, 10_000, validation)
    assert "c is 80.0% here and 20.0% there" in moved.verdict
    unsure = make_facts(shares, 0.7, 10_000, validation)
    assert "less sure (on average 70.0% here and 90.0% there)" in unsure.verdict
    assert "spread" not in unsure.verdict
    assert make_facts(shares, 0.9, 10, None).verdict is None


def test_a_bundle_without_these_numbers_has_no_verdict():
    manifest = data.make_manifest()
    found = read_validation(manifest)
    assert sum(found.shares.values()) == pytest.approx(1)
    manifest["metrics"]["validation"] = {"images": 91, "loss": 0.1, "accuracy": 0.9}
    assert read_validation(manifest) is None
    assert read_validation(data.make_manifest(validation=False)) is None


def test_thumbnails_keep_their_shape_and_their_bounds():
    image = Image.open(io.BytesIO(_decode(make_thumbnail(make_jpeg(320, 120)))))
    assert image.size == (96, 36)
    assert image.getpixel((48, 18)) == pytest.approx((200, 90, 20), abs=4)
    assert make_thumbnail(b"no image") is None
    taken = []

    def read(keys):
        for key in keys:
            taken.append(key)
            yield None if key == 1 else make_jpeg()

    size = len(make_thumbnail(make_jpeg()))
    thumbnails = make_thumbnails([0, 1, 2, 0, 3, 4, 5], read, max_bytes=2 * size)
    assert sorted(thumbnails.uris) == [0, 2]
    assert thumbnails.full
    assert taken == [0, 1, 2, 3]


def _decode(uri):
    import base64

    return base64.b64decode(uri.partition(",")[2])


def test_names_are_cut_in_their_middle():
    assert shorten("a" * 10 + "b" * 10, 9) == "aaaa\N{HORIZONTAL ELLIPSIS}bbbb"
    wide = shorten("\N{CJK UNIFIED IDEOGRAPH-4E00}" * 20, 9)
    assert len(wide) == 5
    assert (
        clean("a\x00b\N{RIGHT-TO-LEFT OVERRIDE}\ud800")
        == "a\N{REPLACEMENT CHARACTER}b" + "\N{REPLACEMENT CHARACTER}" * 2
    )
    assert "secret" not in clean("s3://b/k?X-Amz-Signature=secret")


def test_percentages_are_never_rounded_to_all_or_nothing():
    assert format_percent(0.9234) == "92.3%"
    assert format_percent(0.99996) == ">99.9%"
    assert format_percent(0.00001) == "<0.1%"
    assert format_percent(1.0) == "100.0%"
    assert format_percent(0.0) == "0.0%"
    assert format_percent(float("nan")) == "\N{EN DASH}"


def test_charts_stay_in_their_frame():
    history = data.make_history(1, 0)
    for record in history:
        record["val_loss"] = float("nan")
    drawn = [draw_learning_curve(data.make_history(3, 40), name, 5) for name in ("loss", "accuracy")]
    drawn.append(draw_learning_curve(history, "loss", 1))
    drawn.append(draw_class_bars({"a": 0, "b": 0}))
    timeline = [
        {"seconds": float(second), "fetched": 2 * second**1.5, "answered": second**1.5}
        for second in range(0, 40_000, 10)
    ]
    drawn.append(draw_throughput(timeline))
    for chart in drawn:
        assert "nan" not in chart
        numbers = [float(number) for number in re.findall(r'(?:x|y|x1|x2|y1|y2|cx|cy)="(-?[0-9.]+)"', chart)]
        assert numbers
        assert min(numbers) >= -1
        assert max(numbers) <= 360
    assert draw_throughput(timeline[:1]) == ""
