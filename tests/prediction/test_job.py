import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from tests.output.data import write_images
from tlray.config import PredictConfig
from tlray.errors import ConfigError, DataError, OutputError
from tlray.metrics.thresholds import Threshold, Thresholds
from tlray.prediction.job import (
    check_output,
    check_same_job,
    choose_columns,
    describe_job,
    describe_selection,
    open_job,
    open_plan,
)

ASKED = {"input": ["/in"], "top_k": 3, "limit": None, "min_probability": "0.5"}
OVERALL = Threshold(0.75, 0.96, 0.95, 0.97, 0.9, 100)
THRESHOLDS = Thresholds(0.95, 0.9, OVERALL, 0.5, None, {"a": dataclasses.replace(OVERALL, probability=0.5), "b": None})


def make_bundle(num_features=8, thresholds=THRESHOLDS, ood_score=None):
    manifest = SimpleNamespace(thresholds=thresholds, calibration=SimpleNamespace(ood_score=ood_score))
    return SimpleNamespace(
        uri="bundle", model_id="m" * 64, classes=("a", "b"), num_features=num_features, manifest=manifest
    )


def make_config(**options):
    return PredictConfig(**({"model": "bundle", "input": ("/in",)} | options))


def test_a_new_job_is_saved_and_opened_again(tmp_path):
    job = open_job(str(tmp_path), ASKED, None)
    assert (job.asked, job.update_from) == (ASKED, None)
    assert open_job(str(tmp_path), ASKED, None) == job
    assert open_job(str(tmp_path / "other"), ASKED, None).run_id != job.run_id


def test_another_job_is_refused_and_every_differing_option_is_named(tmp_path):
    open_job(str(tmp_path), ASKED, None)
    with pytest.raises(OutputError) as caught:
        open_job(str(tmp_path), {**ASKED, "top_k": 0, "input": ["/other"]}, None)
    assert str(caught.value) == (
        f"--output {tmp_path} holds another job's labels (input: ['/in'] there, ['/other'] asked; "
        "top_k: 3 there, 0 asked); give a new folder or prefix"
    )


def test_only_options_that_both_jobs_have_are_compared():
    check_same_job("out", {"top_k": 3, "removed_option": 1}, {"top_k": 3, "new_option": 2})
    with pytest.raises(OutputError, match="top_k: 3 there, None asked"):
        check_same_job("out", {"top_k": 3}, {"top_k": None})


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "not JSON"),
        ("[]", "the record takes an object"),
        ('{"run_id": "r", "started": "s", "update_from": null}', "the record lacks asked"),
        ('{"run_id": "r", "started": "s", "asked": {}, "update_from": 1}', "update_from takes str; got 1"),
        ('{"run_id": "r", "started": "s", "asked": [], "update_from": null}', r"asked takes an object; got \[\]"),
        ('{"run_id": "r", "started": "s", "asked": {}, "update_from": null, "x": 1}', "has an unknown field 'x'"),
    ],
)
def test_a_damaged_job_is_one_error_that_names_the_file(tmp_path, text, fault):
    (tmp_path / "_plan").mkdir()
    (tmp_path / "_plan" / "_job.json").write_text(text)
    with pytest.raises(
        OutputError, match=rf"_plan/_job\.json is damaged: .*{fault}.*; it was written by another tlray"
    ):
        open_job(str(tmp_path), ASKED, None)


def test_an_update_resumes_with_its_earlier_output_or_none_named_and_no_other(tmp_path):
    job = open_job(str(tmp_path), ASKED, "/old")
    assert open_job(str(tmp_path), ASKED, "/old") == open_job(str(tmp_path), ASKED, None) == job
    with pytest.raises(ConfigError, match=r"--update-from takes /old, .* or nothing; got /other"):
        open_job(str(tmp_path), ASKED, "/other")


def test_a_description_is_plain_json_and_survives_its_file(tmp_path):
    config = make_config(input=("/in", "s3://bucket/x"), include=("*.jpg",), min_probability="0.5", top_k=2)
    asked = describe_job(config, make_bundle())
    assert asked["include"] == ["*.jpg"]
    assert asked["min_probability"] == "0.5"
    assert asked["input"] == ["/in", "s3://bucket/x"]
    assert json.loads(json.dumps(asked)) == asked
    assert describe_selection(config).items() <= asked.items()
    assert dataclasses.asdict(open_job(str(tmp_path), asked, None))["asked"] == asked


def test_equal_probabilities_and_only_the_same_thresholds_are_the_same_job():
    def describe(min_probability, thresholds=THRESHOLDS):
        config = make_config(min_probability=min_probability)
        return describe_job(config, make_bundle(thresholds=thresholds))["min_probability"]

    assert describe("0.50") == describe("0.5") == "0.5"
    assert describe(None) is None
    other = dataclasses.replace(THRESHOLDS, by_class={"a": OVERALL, "b": None})
    assert describe("auto") == describe("auto")
    assert describe("auto") != describe("auto", other)


def test_requested_columns_follow_the_options_and_the_bundle():
    plain = choose_columns(make_config(), make_bundle())
    assert (plain.top_k, plain.embedding_size, plain.min_probabilities) == (0, 0, None)
    asked = choose_columns(make_config(top_k=9, embeddings=True, min_probability="0.25"), make_bundle())
    assert (asked.top_k, asked.embedding_size) == (2, 8)
    np.testing.assert_array_equal(asked.min_probabilities, np.float32([0.25, 0.25]))
    assert choose_columns(make_config(min_probability="auto"), make_bundle()).min_probabilities[0] == np.float32(0.5)
    assert choose_columns(make_config(max_ood=1.5), make_bundle(ood_score=True)).max_ood == 1.5


def test_what_a_bundle_lacks_is_named():
    with pytest.raises(ConfigError, match="--embeddings needs a bundle that gives features; bundle gives none"):
        choose_columns(make_config(embeddings=True), make_bundle(num_features=0))
    with pytest.raises(ConfigError, match="--max-ood needs a bundle that gives an ood_score; bundle gives none"):
        choose_columns(make_config(max_ood=1.5), make_bundle())
    for call in (choose_columns, describe_job):
        with pytest.raises(ConfigError, match=r"--min-probability auto needs thresholds .*; bundle has none"):
            call(make_config(min_probability="auto"), make_bundle(thresholds=None))


def test_a_plan_is_made_once_and_only_for_its_own_selection(tmp_path):
    images, output = write_images(tmp_path / "in"), str(tmp_path / "out")
    plan = open_plan(output, make_config(input=(str(images),)))
    (images / "new.jpg").write_bytes(b"too late")
    assert open_plan(output, make_config(input=(str(images),), top_k=3)) == plan
    with pytest.raises(OutputError, match="limit: None there, 5 asked"):
        open_plan(output, make_config(input=(str(images),), limit=5))


def test_a_folder_without_images_is_an_error_with_the_reasons_and_leaves_no_plan(tmp_path):
    (tmp_path / "in").mkdir()
    config, output = make_config(input=(str(tmp_path / "in"),)), str(tmp_path / "out")
    with pytest.raises(DataError, match=r"holds no images to predict; no file, member or line was found"):
        open_plan(output, config)
    (tmp_path / "in" / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"all 1 addresses are left out \(1: .*extension"):
        open_plan(output, config)
    assert not list((tmp_path / "out").rglob("*.json"))


def test_an_output_may_hold_a_plan_or_a_lock_and_nothing_else(tmp_path):
    check_output(str(tmp_path / "new"))
    (tmp_path / "_lock.json").write_text("{}")
    (tmp_path / "_plan").mkdir()
    (tmp_path / "_plan" / "plan-00000.parquet").write_bytes(b"of an interrupted planning")
    check_output(str(tmp_path))
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(OutputError, match=r"already holds something that is not a prediction run \(mine\.txt\)"):
        check_output(str(tmp_path))
    (tmp_path / "_plan" / "_plan.json").write_text("{}")
    check_output(str(tmp_path))


UNPACKED = "tmp/ray/session_1/runtime_resources/working_dir_files/_ray_pkg_{}"


def write_list(tmp_path, package, text="uri\ns3://b/1.jpg\n"):
    path = tmp_path / UNPACKED.format(package) / "lists" / "all.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return make_config(input=(str(path),))


def test_a_job_is_the_same_wherever_ray_unpacked_its_files(tmp_path):
    first, second = (describe_selection(write_list(tmp_path, package)) for package in ("a1", "b2"))
    assert first["input"] == ["working_dir/lists/all.csv"]
    check_same_job("out", first, second)


def test_a_changed_list_is_another_job(tmp_path):
    first = describe_selection(write_list(tmp_path, "a1"))
    second = describe_selection(write_list(tmp_path, "a1", "uri\ns3://b/2.jpg\n"))
    with pytest.raises(OutputError, match=r"lists: .*working_dir/lists/all\.csv.* there"):
        check_same_job("out", first, second)


def test_a_plan_of_files_that_ray_unpacked_is_read_where_they_lie(tmp_path):
    folder = tmp_path / UNPACKED.format("a1")
    folder.parent.mkdir(parents=True)
    write_images(folder)
    output = str(tmp_path / "out")
    assert open_plan(output, make_config(input=(str(folder / "1.jpg"), str(folder / "2.jpg")))).num_rows == 2
