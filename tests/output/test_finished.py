import io
import tarfile
from pathlib import Path

import pytest

from tests.outputs import label, make_image
from tlray.errors import OutputError
from tlray.images.limits import Limits
from tlray.output.finished import get_limits, open_finished, read_images


@pytest.fixture
def output(tmp_path):
    """Two files, the first of which is gone, and a member of a packed archive."""
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(make_image("red"))
    with tarfile.open(tmp_path / "c.tar.gz", "w:gz") as tar:
        info = tarfile.TarInfo("c.png")
        info.size = len(make_image("blue"))
        tar.addfile(info, io.BytesIO(make_image("blue")))
    inputs = [tmp_path / "a.png", tmp_path / "b.png", tmp_path / "c.tar.gz"]
    folder = label(tmp_path / "labels", inputs, lambda row: 0, ["x"])
    (tmp_path / "a.png").unlink()
    return folder


def test_only_a_finished_output_is_opened(output):
    receipt, plan = open_finished(output, "--update-from")
    assert (receipt.planned, plan.num_rows) == (3, 3)
    Path(output, "_receipt.json").unlink()
    for address in (output, f"{output}/none"):
        with pytest.raises(OutputError, match="--update-from takes the output of a finished tlray predict; got "):
            open_finished(address, "--update-from")


def test_images_are_read_in_order_but_those_that_need_a_pass(output):
    receipt, plan = open_finished(output, "x")
    assert get_limits(receipt) == Limits()
    assert list(read_images(plan, [0, 1, 2], Limits())) == [None, make_image("red"), None]
    assert list(read_images(plan, [2, 1], Limits())) == [None, make_image("red")]
    assert list(read_images(plan, [], Limits())) == []
