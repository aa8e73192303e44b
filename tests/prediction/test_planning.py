import pytest

from tests.output.data import write_images
from tlray.config import PlanConfig
from tlray.errors import ConfigError, OutputError
from tlray.output.plan import open_plan
from tlray.prediction.planning import make_plan


def test_a_plan_is_made_then_found(tmp_path):
    config = PlanConfig(input=(str(write_images(tmp_path / "in")),), output=str(tmp_path / "out"))
    made = make_plan(config)
    assert (made.plan.num_rows, made.already_there, made.probe) == (10, False, None)
    assert open_plan(made.output) == made.plan
    found = make_plan(config)
    assert (found.plan, found.already_there) == (made.plan, True)
    assert not (tmp_path / "out" / "_lock.json").exists()


def test_another_selection_is_refused(tmp_path):
    inputs = (str(write_images(tmp_path / "in")),)
    make_plan(PlanConfig(input=inputs, output=str(tmp_path / "out"), limit=3))
    with pytest.raises(OutputError, match="limit: 3 there, 4 asked"):
        make_plan(PlanConfig(input=inputs, output=str(tmp_path / "out"), limit=4))


def test_a_folder_of_something_else_is_refused(tmp_path):
    inputs = (str(write_images(tmp_path / "in")),)
    with pytest.raises(OutputError, match=r"not a prediction run \(0\.jpg\)"):
        make_plan(PlanConfig(input=inputs, output=inputs[0]))


def test_options_are_checked_before_anything_is_written(tmp_path):
    config = PlanConfig(input=("/in",), output=str(tmp_path / "out"), probe=4)
    with pytest.raises(ConfigError, match="--probe needs --model"):
        make_plan(config)
    assert not (tmp_path / "out").exists()
