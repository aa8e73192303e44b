import numpy as np
import pytest

from tlray.output.plan import Stream
from tlray.output.rowset import RowSet
from tlray.prediction.pipeline import choose_batch_rows, make_windows


def test_windows_cover_what_is_not_done_and_leave_streams_whole():
    done = RowSet(1000)
    windows = make_windows(done, 2, 1, [Stream(100, 300)])
    assert (100, 300) in windows
    assert sorted(row for first, count in windows for row in range(first, first + count)) == list(range(1000))
    assert len(windows) == 7
    done.add(np.arange(0, 400))
    windows = make_windows(done, 2, 1, [Stream(100, 300)])
    assert min(first for first, _ in windows) == 400
    done.add(np.arange(400, 1000))
    assert make_windows(done, 2, 1) == []
    assert max(count for _, count in make_windows(RowSet(100_000), 2, 1)) == 1024
    assert {count for _, count in make_windows(RowSet(320), 64, 32)} == {32}


def test_windows_of_a_long_run_hold_whole_batches_up_to_a_limit():
    windows = make_windows(RowSet(40_000_000), 64, 96)
    sizes = {count for _, count in windows[:-1]}
    assert sizes == {86 * 96}  # the first multiple from 8,192 on
    assert sum(count for _, count in windows) == 40_000_000


@pytest.mark.parametrize(
    ("batch_size", "num_cpus", "gpus", "expected"), [(5, 64, True, 5), (None, 64, False, 32), (None, 65, False, 128)]
)
def test_a_given_batch_size_wins_and_many_cores_get_larger_batches(batch_size, num_cpus, gpus, expected):
    assert choose_batch_rows(batch_size, num_cpus, gpus=gpus) == expected
