"""The same images by every road into a labelling run, and the labels out of it by every reader."""

import duckdb
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest

from tests.entry.conftest import run_tlray
from tests.roads import ROADS, write_roads

pytestmark = pytest.mark.usefixtures("notebook")

IMAGES = 170


def label_roads(bundle, files, root):
    """Label every road in one run; the rows by road and name."""
    inputs = write_roads(files, root / "in")
    output = root / "labels"
    run_tlray("predict", "--model", str(bundle), "--input", *inputs, "--image-column", "image", "--output", str(output))
    rows = {road: {} for road in ROADS}
    for row in pq.read_table(output / "labels").to_pylist():
        archive, _, member = row["uri"].rpartition("#")
        if archive:
            rows[archive.rpartition("/")[2]][row["input_name"] or member] = row
        else:
            rows["folder" if row["input_name"] is None else "manifest"][row["uri"].rpartition("/")[2]] = row
    return output, rows


@pytest.fixture(scope="module")
def labelled(bundle, digits, tmp_path_factory):
    paths = sorted(digits.rglob("*.png"))
    files = {f"{index:04d}.png": paths[index % len(paths)].read_bytes() for index in range(IMAGES)}
    return label_roads(bundle, files, tmp_path_factory.mktemp("roads"))


def check_roads_agree(rows, num_files):
    expected = rows["folder"]
    assert len(expected) == num_files
    for road in ROADS[1:]:
        assert rows[road].keys() == expected.keys(), road
        for name, row in rows[road].items():
            for column in ("status", "predicted_index", "class_name", "width", "height"):
                assert row[column] == expected[name][column], (road, name, column)
            assert row["probability"] == pytest.approx(expected[name]["probability"], abs=1e-5), (road, name)


def test_a_thousand_objects_have_the_same_labels_on_each_road(labelled):
    output, rows = labelled
    check_roads_agree(rows, IMAGES)
    assert sum(map(len, rows.values())) == IMAGES * len(ROADS) > 1000
    assert "Whole" in run_tlray("verify", str(output))


def test_the_dirty_folder_on_each_road(bundle, test_data, tmp_path):
    files = {path.name: path.read_bytes() for path in sorted((test_data / "dirty").iterdir())}
    _, rows = label_roads(bundle, files, tmp_path)
    check_roads_agree(rows, 39)
    status = [row["status"] for row in rows["folder"].values()]
    counts = {code: status.count(code) for code in set(status)}
    assert counts == {"ok": 33, "EMPTY": 1, "UNSUPPORTED": 1, "TRUNCATED": 4}


def test_duckdb_pandas_and_polars_open_the_labels_as_they_are(labelled):
    output, _ = labelled
    expected = IMAGES * len(ROADS)
    with duckdb.connect() as database:
        counted = database.sql(f"select count(distinct row_id), count(*) from '{output}/labels/*.parquet'").fetchone()
    assert counted == (expected, expected)
    assert len(pd.read_parquet(output / "labels")) == expected
    frame = pl.read_parquet(output / "labels")
    assert (frame.height, frame["row_id"].n_unique()) == (expected, expected)


def test_an_update_labels_only_what_is_new_or_changed(bundle, labelled, tmp_path):
    output, _ = labelled
    folder = tmp_path / "in"
    folder.mkdir()
    originals = sorted((output.parent / "in" / "folder").iterdir())[:12]
    for index, path in enumerate(originals):
        (folder / f"{index}.png").write_bytes(path.read_bytes())
    (folder / "11.png").write_bytes(b"no image")
    options = ["predict", "--model", str(bundle), "--input", str(folder), "--output"]
    run_tlray(*options, str(tmp_path / "one"))
    (folder / "0.png").write_bytes(originals[5].read_bytes())
    (folder / "1.png").unlink()
    (folder / "new.png").write_bytes(originals[6].read_bytes())
    printed = run_tlray(*options, str(tmp_path / "two"), "--update-from", str(tmp_path / "one"))
    assert "10 kept, 1 new, 1 changed, 1 vanished" in printed
    assert "2 images" in printed
    one, two = (
        {row["uri"].rpartition("/")[2]: row for row in pq.read_table(tmp_path / name / "labels").to_pylist()}
        for name in ("one", "two")
    )
    assert two.keys() == {*one, "new.png"} - {"1.png"}
    assert two["11.png"]["status"] == "UNSUPPORTED"
    for name in set(one) - {"0.png", "1.png"}:
        assert {**two[name], "row_id": 0} == {**one[name], "row_id": 0}
    assert "Whole" in run_tlray("verify", str(tmp_path / "two"))
    run_tlray(*options, str(tmp_path / "three"), "--update-from", str(folder), expect=2)
