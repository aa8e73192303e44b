from types import SimpleNamespace

import pyarrow as pa
import pytest

from tlray.errors import StoppedError
from tlray.prediction.probe import Measured, _conclude, _sample

ONE = Measured(
    images=10, failed=0, engine="float32", gpus=0, fetch_s=0.1, fetch_cpu_s=0.01, decode_cpu_s=0.09, infer_s=0.9
)


def test_on_cpus_the_stages_share_the_cores():
    probe = _conclude([ONE, ONE], cores=2, write_s=1e-6, num_rows=72_000, price_per_hour=3.0)
    assert probe.images == 20
    assert probe.images_per_s == pytest.approx(2 / (0.001 + 0.009 + 0.09))
    assert probe.limited_by == "inference"
    assert probe.cpus_per_gpu is None
    assert probe.hours == pytest.approx(1.0)
    assert probe.cost == pytest.approx(3.0)


def test_a_gpu_waits_for_its_cores():
    measured = Measured(**{**vars(ONE), "gpus": 1, "fetch_s": 0.01, "infer_s": 0.001})
    probe = _conclude([measured], cores=8, write_s=1e-6, num_rows=800, price_per_hour=None)
    assert probe.limited_by == "decoding"
    assert probe.images_per_s == pytest.approx(8 / 0.01)
    assert probe.cpus_per_gpu == pytest.approx(100)
    assert probe.cost is None


def test_a_slow_store_is_told():
    measured = Measured(**{**vars(ONE), "fetch_s": 20.0})
    assert _conclude([measured], 2, 1e-6, 10, None).limited_by == "fetching"
    assert _conclude([ONE], 2, 9.0, 10, None).limited_by == "writing"


def test_nothing_to_measure_by_is_said():
    with pytest.raises(StoppedError, match="none of 10 sampled images can be predicted"):
        _conclude([Measured(**{**vars(ONE), "failed": 10})], 2, 1e-6, 10, None)


@pytest.mark.parametrize(("rows", "wanted"), [(5, 3), (5, 5), (5, 50), (1000, 64), (1000, 7), (1, 1)])
def test_a_sample_is_from_all_over_the_plan_and_takes_no_row_twice(rows, wanted):
    plan = SimpleNamespace(
        num_rows=rows, read=lambda first, count: pa.table({"row_id": list(range(first, min(first + count, rows)))})
    )
    ids = _sample(plan, wanted)["row_id"].to_pylist()
    assert len(ids) == len(set(ids)) == min(rows, wanted)
    if 1 < wanted <= rows:
        assert ids[0] == 0
        assert ids[-1] == rows - 1
