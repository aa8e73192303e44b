import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.output.data import plan_images, write_images
from tlray.errors import OutputError
from tlray.output import plan as planning
from tlray.output.plan import EXCLUDED_SCHEMA, PLAN_SCHEMA, Stream, open_plan, write_plan
from tlray.sources.candidates import Candidate, SourceKind
from tlray.sources.listing import Candidates, Selection, find_candidates


def write_rows(output, *candidates):
    return write_plan(str(output), Candidates([], iter(candidates)), {}, None)


def test_a_plan_comes_back_as_it_was_written(tmp_path):
    plan = plan_images(tmp_path / "out", write_images(tmp_path / "in"))
    assert open_plan(str(tmp_path / "out")) == plan
    assert (plan.num_rows, plan.image_column, plan.input_fields) == (10, None, [])
    assert plan.measures.num_bytes == sum(range(1, 11))
    rows = plan.read(0, 100)
    assert rows.schema == PLAN_SCHEMA
    assert rows["row_id"].to_pylist() == list(range(10))
    assert rows["size"].to_pylist() == list(range(1, 11))


def test_an_output_without_a_whole_plan_has_none(tmp_path):
    assert open_plan(str(tmp_path)) is None
    plan_images(tmp_path, write_images(tmp_path / "in"))
    (tmp_path / "_plan" / "_plan.json").unlink()
    assert open_plan(str(tmp_path)) is None


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"num_rows": "10"}, 'num_rows takes int; got "10"'),
        ({"extra": 1}, "the record has an unknown field 'extra'"),
        ({"streams": [{"first": 0}]}, r"streams\[0\] lacks count"),
    ],
)
def test_a_damaged_record_is_one_error_that_names_the_file(tmp_path, change, fault):
    plan_images(tmp_path, write_images(tmp_path / "in"))
    path = tmp_path / "_plan" / "_plan.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(OutputError, match=rf"_plan/_plan\.json is damaged: {fault}; it was written by another tlray"):
        open_plan(str(tmp_path))


def test_an_interrupted_planning_leaves_nothing_behind(tmp_path):
    stale = tmp_path / "_plan" / "plan-00007.parquet"
    stale.parent.mkdir()
    stale.write_bytes(b"cut")
    plan_images(tmp_path, write_images(tmp_path / "in"))
    assert not stale.exists()


@pytest.fixture
def small_files(monkeypatch):
    """Files of 6 rows in groups of 3."""
    monkeypatch.setattr(planning, "ROWS_PER_GROUP", 3)
    monkeypatch.setattr(planning, "ROWS_PER_FILE", 6)
    planning._read_group.cache_clear()
    planning._open_file.cache_clear()


@pytest.mark.parametrize(("first", "count"), [(0, 10), (0, 3), (2, 2), (5, 2), (6, 4), (9, 100), (3, 0), (10, 5)])
def test_a_slice_may_cross_groups_and_files(tmp_path, small_files, first, count):
    plan = plan_images(tmp_path / "out", write_images(tmp_path / "in"))
    assert len(list((tmp_path / "out" / "_plan").glob("plan-*.parquet"))) == 2
    rows = plan.read(first, count)
    assert rows["row_id"].to_pylist() == list(range(10))[first : first + count]
    assert rows.schema == PLAN_SCHEMA


def test_rows_are_taken_in_the_order_asked_for(tmp_path, small_files):
    plan = plan_images(tmp_path / "out", write_images(tmp_path / "in"))
    assert plan.take(np.array([9, 0, 4, 4, 8]))["row_id"].to_pylist() == [9, 0, 4, 4, 8]
    assert plan.take(np.array([], np.int64)).num_rows == 0
    assert [table.num_rows for table in plan.iter_tables()] == [3, 3, 3, 1]


@pytest.mark.parametrize("count", [0, 3, 6, 7])
def test_every_plan_has_one_file_and_none_is_empty_beside_others(tmp_path, small_files, count):
    plan = write_rows(tmp_path, *(Candidate(f"/x/{row}.jpg", "x") for row in range(count)))
    files = sorted((tmp_path / "_plan").glob("plan-*.parquet"))
    assert [pq.read_metadata(path).num_rows for path in files] == {0: [0], 3: [3], 6: [6], 7: [6, 1]}[count]
    assert plan.read(0, 10).num_rows == plan.num_rows == count


def test_left_out_addresses_are_counted_by_reason_and_written(tmp_path):
    plan = write_rows(
        tmp_path,
        Candidate("/x/a.txt", "a.txt", reason="not an image"),
        Candidate("/x/b.jpg", "b.jpg"),
        Candidate("/x/\udce4.txt", "c.txt", reason="not an image"),
        Candidate("/x/d.jpg", "d.jpg", reason="matched by --exclude"),
    )
    assert (plan.num_rows, plan.measures.num_excluded) == (1, 3)
    assert plan.measures.excluded_by_reason == {"not an image": 2, "matched by --exclude": 1}
    written = pq.read_table(tmp_path / "_plan" / "excluded-00000.parquet")
    assert written.schema == EXCLUDED_SCHEMA
    assert written["uri"].to_pylist() == ["/x/a.txt", "/x/\\xe4.txt", "/x/d.jpg"]


def test_a_pass_over_a_gzipped_archive_is_one_stream(tmp_path):
    def make_member(archive, member, offset):
        return Candidate(f"{archive}#{member}", member, SourceKind.TAR_PACKED, member, offset, 10)

    plan = write_rows(
        tmp_path,
        Candidate("/x/a.jpg", "a.jpg"),
        make_member("/x/1.tgz", "a", 512),
        Candidate("/x/1.tgz#link", "link", SourceKind.LINK, "link"),
        make_member("/x/1.tgz", "b", 2048),
        make_member("/x/2.tgz", "a", 512),
        make_member("/x/2.tgz", "b", 100),  # back again: another pass
        Candidate("/x/c.jpg", "c.jpg"),
    )
    assert plan.measures.streams == [Stream(1, 3), Stream(4, 1), Stream(5, 1)]


def spoil(output, inputs, change):
    """Write a plan of `inputs`, change its first file's columns, and open it again."""
    plan = write_plan(str(output), find_candidates(inputs, Selection()), {"input": inputs, "allow": []}, None)
    path = output / "_plan" / "plan-00000.parquet"
    columns = pq.read_table(path).to_pydict()
    change(columns)
    pq.write_table(pa.table(columns, schema=PLAN_SCHEMA if set(columns) == {*PLAN_SCHEMA.names} else None), path)
    planning._forget_files()
    return plan


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("uri", "/etc/passwd", "/etc/passwd lies outside of the inputs"),
        ("uri", "s3://other/secret.jpg", "s3://other/secret.jpg lies outside of the inputs"),
        ("row_id", 7, "its rows are not numbered in order"),
        ("source", "pipe", r"unknown kinds of sources \(pipe\)"),
        ("more", "x", "other columns than a plan's"),
    ],
)
def test_an_edited_plan_is_not_followed(tmp_path, name, value, fault):
    folder = write_images(tmp_path / "in")
    plan = spoil(tmp_path / "out", [str(folder)], lambda columns: columns.update({name: [value] * 10}))
    if name == "more":
        plan = spoil(tmp_path / "out", [str(folder)], lambda columns: columns.pop("etag"))
    with pytest.raises(OutputError, match=rf"plan-00000\.parquet is damaged: {fault}; give a new --output"):
        plan.read(0, 10)


def test_a_plan_that_is_cut_short_is_one_error(tmp_path):
    plan = plan_images(tmp_path / "out", write_images(tmp_path / "in"))
    path = tmp_path / "out" / "_plan" / "plan-00000.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    planning._forget_files()
    with pytest.raises(OutputError, match=r"plan-00000\.parquet is damaged: "):
        plan.read(0, 10)


def test_members_whose_names_lead_outside_lie_in_their_archive(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    with tarfile.open(folder / "a.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("../../escaped.png"))
    inputs = [str(folder)]
    plan = write_plan(str(tmp_path), find_candidates(inputs, Selection()), {"input": inputs, "allow": []}, None)
    assert plan.read(0, 1)["uri"].to_pylist() == [f"{folder}/a.tar#../../escaped.png"]
