import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tlray import demo
from tlray.config import DemoConfig
from tlray.demo import Example, _choose_weights, _configure_training, _read_labels, write_digits
from tlray.errors import OutputError, WeightsError


def test_a_third_of_the_digits_is_held_out(tmp_path):
    write_digits(tmp_path / "demo")
    train, test = (sorted((tmp_path / "demo" / role).rglob("*.png")) for role in ("train", "test"))
    assert (len(train), len(test)) == (1198, 599)
    assert {path.parent.name for path in train} == {path.parent.name for path in test} == set("0123456789")
    assert not {path.name for path in train} & {path.name for path in test}
    with Image.open(train[0]) as image:
        assert image.size == (64, 64)
    written = train[0].stat().st_mtime_ns
    write_digits(tmp_path / "demo")
    assert train[0].stat().st_mtime_ns == written


def test_a_folder_with_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="already holds something that is not a demo"):
        write_digits(tmp_path)


def test_weights_that_cannot_be_fetched_are_replaced_by_random_ones(monkeypatch, capsys):
    def refuse(*_):
        raise WeightsError("no weights (no network) here")

    monkeypatch.setattr(demo, "load_weights", refuse)
    assert _choose_weights("none") == "none"
    assert _choose_weights("imagenet") == "none"
    assert (
        "ImageNet weights cannot be fetched (no network): every layer is trained from scratch"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(("weights", "boundary"), [("none", "input"), ("imagenet", "mixed2")])
def test_the_training_is_valid_for_either_weights(tmp_path, weights, boundary):
    training = _configure_training(DemoConfig(output=str(tmp_path)), tmp_path, weights)
    training.check()
    assert (training.weights, training.finetune_from) == (weights, boundary)


def test_the_true_class_is_the_folder_of_an_image(tmp_path):
    folder = tmp_path / "labels" / "labels"
    folder.mkdir(parents=True)
    table = {"uri": ["/demo/test/7/a.png"], "class_name": ["1"], "probability": [0.5]}
    pq.write_table(pa.table(table), folder / "part-00000.parquet")
    assert _read_labels(tmp_path) == [Example("7/a.png", "7", "1", 0.5)]
