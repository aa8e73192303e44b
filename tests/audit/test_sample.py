import json

import pytest

from tests.audit.data import make_sample
from tlray.audit.sample import NAME, name_round, read_sample, write_sample
from tlray.errors import OutputError

SAMPLE = make_sample([(3, '/\N{RIGHT-TO-LEFT OVERRIDE}\n"ü.jpg', "glass", False), (7, "/a.tar#b.jpg", "metal", True)])
FIELDS = [
    "format",
    "run_id",
    "model_id",
    "finished",
    "rounds",
    "seed",
    "classes",
    "rows_by_class",
    "confidence_by_class",
    "rows",
]


def test_a_sample_is_read_as_it_was_written(tmp_path):
    write_sample(str(tmp_path / "new" / "audit"), SAMPLE)
    assert read_sample(str(tmp_path / "new" / "audit")) == SAMPLE
    assert [path.name for path in (tmp_path / "new" / "audit").iterdir()] == ["sample.json"]


def test_a_record_is_json_with_a_version(tmp_path):
    write_sample(str(tmp_path), SAMPLE)
    record = json.loads((tmp_path / NAME).read_text(encoding="utf-8"))
    assert list(record) == FIELDS
    assert record["format"] == 2
    assert record["rows"][1] == {
        "row_id": 7,
        "uri": "/a.tar#b.jpg",
        "class_name": "metal",
        "probability": 0.507,
        "inside": True,
        "round": 1,
        "inclusion": 0.1,
    }


def test_a_folder_without_a_record_has_no_sample(tmp_path):
    assert read_sample(str(tmp_path)) is None
    assert read_sample(str(tmp_path / "none")) is None


@pytest.mark.parametrize("data", [b"", b"no JSON", b"\xff\xfe", b"[]", b"7", b"null", b"{}", b'{"rows": null}'])
def test_another_file_is_no_record(tmp_path, data):
    (tmp_path / NAME).write_bytes(data)
    with pytest.raises(OutputError, match=r"sample\.json is not the record of a tlray audit"):
        read_sample(str(tmp_path))


@pytest.mark.parametrize("field", FIELDS)
def test_a_record_that_lacks_a_field_is_none(tmp_path, field):
    write_sample(str(tmp_path), SAMPLE)
    record = json.loads((tmp_path / NAME).read_text(encoding="utf-8"))
    del record[field]
    (tmp_path / NAME).write_text(json.dumps(record))
    with pytest.raises(OutputError, match="is not the record"):
        read_sample(str(tmp_path))


@pytest.mark.parametrize("change", [{"more": 1}, {"rows": [{"row_id": 3}]}, {"rows": [7]}])
def test_a_record_of_another_shape_is_none(tmp_path, change):
    write_sample(str(tmp_path), SAMPLE)
    record = json.loads((tmp_path / NAME).read_text(encoding="utf-8"))
    (tmp_path / NAME).write_text(json.dumps(record | change))
    with pytest.raises(OutputError, match="is not the record"):
        read_sample(str(tmp_path))


def test_each_round_has_its_own_files():
    assert [name_round("sample.csv", number) for number in (1, 2, 10)] == [
        "sample.csv",
        "sample-2.csv",
        "sample-10.csv",
    ]
    sample = make_sample([(1, "/a", "glass", False), (2, "/b", "glass", False)], rounds=[1, 2])
    assert sample.rounds == [1, 2]
    assert [row.row_id for row in sample.list_round(2)] == [2]


def test_a_sample_of_an_earlier_version_is_told_apart(tmp_path):
    (tmp_path / NAME).write_text('{\n  "format": 1,\n  "run_id": "run"\n}')
    with pytest.raises(OutputError, match="drawn by an earlier version of tlray"):
        read_sample(str(tmp_path))
