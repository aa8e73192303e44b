import numpy as np
import pytest

from tests.factories import make_files
from tlray.errors import StoppedError
from tlray.output.plan import PLAN_SCHEMA
from tlray.output.rowset import RowSet
from tlray.prediction import dispatcher as dispatchers
from tlray.prediction.dispatcher import MAX_TRIES, Dispatcher, MemoryRows, Order, Sight

KEY = ("window", 0)


def make_dispatcher(count=10, done=()):
    rows = RowSet(count)
    rows.add(np.array(done, np.int64))
    return Dispatcher(MemoryRows(make_files([f"/x/{row}.jpg" for row in range(count)])), rows)


def test_a_window_gives_the_rows_that_are_not_done():
    dispatcher = make_dispatcher(done=[1, 2])
    rows, tries = dispatcher.lease(0, 5)
    assert rows["row_id"].to_pylist() == [0, 3, 4]
    assert rows["uri"].to_pylist() == ["/x/0.jpg", "/x/3.jpg", "/x/4.jpg"]
    assert tries == 0
    assert dispatcher.lease(0, 5)[1] == 1
    dispatcher.leave(KEY)
    assert dispatcher.lease(0, 5)[1] == 0
    dispatcher.stop()
    assert dispatcher.lease(0, 5)[0].num_rows == 0


@pytest.mark.parametrize("killers", [{7}, {0, 1}, {2, 3, 8}, {0, 1, 2, 3, 9}])
def test_rows_that_kill_their_process_are_given_up_after_their_own_tries(killers):
    dispatcher = make_dispatcher()
    dispatcher.enter(KEY, "a")  # the window's first process dies
    killed = 0
    for _ in range(50):
        dispatcher.enter(KEY, "a")
        for row in range(10):
            if dispatcher.isolate(KEY, row) < MAX_TRIES and row in killers:
                killed += 1
                break
        else:
            break
    assert killed == MAX_TRIES * len(killers)


def test_rows_whose_processes_are_killed_from_outside_are_not_given_up():
    dispatcher = make_dispatcher()
    for victim in (3, 5, 3, 8, 2, 5, 9):
        dispatcher.enter(KEY, "a")
        for row in range(victim + 1):
            assert dispatcher.isolate(KEY, row) < MAX_TRIES


def test_engines_that_finish_no_batch_end_the_run():
    dispatcher = make_dispatcher()
    for _ in range(10):
        dispatcher.start_engine(1)
    dispatcher.leave(("batch", 0))
    for _ in range(10):
        dispatcher.start_engine(1)
    with pytest.raises(StoppedError, match="10 times without a prediction"):
        dispatcher.start_engine(1)


def test_rows_in_memory_are_read_like_a_plan():
    rows = MemoryRows(make_files(["/x/a.jpg", "/x/b.jpg", "/x/c.jpg"]))
    table = rows.read(1, 5)
    assert table.schema == PLAN_SCHEMA
    assert table["row_id"].to_pylist() == [1, 2]
    assert table["uri"].to_pylist() == ["/x/b.jpg", "/x/c.jpg"]
    assert table["source"].to_pylist() == ["file", "file"]
    assert rows.read(0, 0).num_rows == 0


def test_stopping_ends_batches_and_tasks():
    dispatcher = make_dispatcher()
    assert dispatcher.start_batch(("batch", 0), "a") == (Order.WORK, 0)
    assert dispatcher.start_batch(("batch", 0), "a") == (Order.WORK, 1)
    assert dispatcher.look(3, "a") is Order.WORK
    dispatcher.stop()
    assert dispatcher.look(2, "a") is Order.STOP
    assert dispatcher.start_batch(("batch", 0), "a")[0] is Order.STOP
    dispatcher.leave(("window", 0), 4)
    assert dispatcher.get_fetched() == 9


def test_processes_of_a_drained_machine_are_to_move(monkeypatch):
    """The cluster is asked at most once a second; where it does not answer, its last answer counts."""
    now, answers = [100.0], [frozenset("b"), RuntimeError(), frozenset("ab")]

    def list_draining_nodes():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(dispatchers, "list_draining_nodes", list_draining_nodes)
    monkeypatch.setattr(dispatchers.time, "monotonic", lambda: now[0])
    dispatcher = make_dispatcher()
    for seconds, expected in ((0.0, "work move"), (0.9, "work move"), (0.2, "work move"), (1.0, "move move")):
        now[0] += seconds
        assert [dispatcher.look(0, node) for node in "ab"] == expected.split()
    assert dispatcher.start_batch(("batch", 0), "a") == (Order.MOVE, 0)
    assert dispatcher.start_batch(("batch", 0), "c") == (Order.WORK, 0)  # not entered by the first one
    dispatcher.stop()
    assert dispatcher.look(0, "a") is Order.STOP


def test_a_process_that_ends_with_its_machine_is_no_sign_against_its_rows(monkeypatch):
    monkeypatch.setattr(dispatchers, "list_draining_nodes", lambda: frozenset("b"))
    dispatcher = make_dispatcher()
    assert [dispatcher.enter(KEY, node) for node in "babbaa"] == [0, 1, 2, 3, 4, 5]
    dispatcher.leave(KEY)
    dispatcher.look(0, "a")  # finds out that b is drained
    assert [dispatcher.enter(KEY, node) for node in "babbaa"] == [0, 0, 1, 1, 1, 2]


def test_readers_get_no_column_that_a_list_carries_along():
    rows = MemoryRows(make_files(["/x/0.jpg", "/x/1.jpg"]))
    read = rows.read
    rows.read = lambda first, count: (table := read(first, count)).append_column("input_n", [[0] * table.num_rows])
    dispatcher = Dispatcher(rows, RowSet(2))
    assert dispatcher.lease(0, 2)[0].schema.names == PLAN_SCHEMA.names
    dispatcher.stop()
    assert dispatcher.lease(0, 2)[0].schema.names == PLAN_SCHEMA.names


def test_a_machine_that_reads_nothing_while_others_do_gives_its_rows_back():
    dispatcher = make_dispatcher(done=[1])
    for node, num_read, num_unreachable in (("a", 0, 19), ("b", 0, 30), ("c", 0, 5)):
        dispatcher.note_reach(node, num_read, num_unreachable)
    assert dispatcher.describe_sight() == Sight(0, frozenset(), frozenset())  # nobody reads: the store is away
    dispatcher.note_reach("c", 1, 30)
    assert dispatcher.describe_sight() == Sight(0, frozenset("b"), frozenset("c"))
    dispatcher.note_reach("a", 0, 1)
    assert dispatcher.describe_sight().blind == frozenset("ab")
    assert dispatcher.lease(0, 5, "a") == (None, 0)
    assert dispatcher.lease(0, 5, "c")[0].num_rows == 4
    assert dispatcher.lease(5, 5, "b") == (None, 0)
    assert dispatcher.describe_sight().num_given_back == 9
    dispatcher.note_reach("a", 1, 0)  # it sees again
    assert dispatcher.lease(0, 5, "a")[0].num_rows == 4


def test_a_row_in_progress_on_a_drained_machine_keeps_its_tries(monkeypatch):
    monkeypatch.setattr(dispatchers, "list_draining_nodes", lambda: frozenset("b"))
    dispatcher = make_dispatcher()
    dispatcher.look(0, "b")
    for _ in range(MAX_TRIES + 2):
        dispatcher.enter(KEY, "b")
        assert dispatcher.isolate(KEY, 4) == 0
    for tries in range(MAX_TRIES + 1):  # elsewhere it kills its processes
        dispatcher.enter(KEY, "a")
        assert dispatcher.isolate(KEY, 4) == tries
