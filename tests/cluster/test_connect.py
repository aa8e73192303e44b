import socket

import pytest

from tlray.cluster.connect import _check_address, explain_failure, is_local
from tlray.errors import DataError, DivergedError, StoppedError, UsageError, WeightsError


@pytest.mark.parametrize(
    ("address", "variable", "expected"),
    [
        (None, None, True),
        ("local", None, True),
        ("local", "10.0.0.1:6379", True),
        (None, "local", True),
        (None, "10.0.0.1:6379", False),
        ("auto", None, False),
        ("10.0.0.1:6379", "local", False),
    ],
)
def test_an_address_wins_over_the_variable_and_local_is_the_default(monkeypatch, address, variable, expected):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    assert is_local(address) is expected


def test_an_address_where_nothing_listens_is_refused_at_once():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        _check_address(address)
    with pytest.raises(StoppedError, match=f"no Ray cluster answers at {address}: Connection refused; check"):
        _check_address(address)


@pytest.mark.parametrize("address", ["auto", "127.0.0.1", ":1"])
def test_addresses_other_than_host_and_port_are_left_to_ray(address):
    _check_address(address)


def test_our_error_is_found_inside_the_errors_around_it():
    try:
        try:
            raise DataError("the reason")
        except DataError as error:
            raise RuntimeError("a task failed") from error
    except RuntimeError as error:
        told = explain_failure(error, "labelling")
    assert isinstance(told, DataError)


def test_our_error_that_comes_as_text_loses_its_class_name():
    text = (
        "The actor died because of an error raised in its creation task\n  tlray.errors.StoppedError: give more memory"
    )
    told = explain_failure(RuntimeError(text), "labelling")
    assert isinstance(told, StoppedError)
    assert str(told) == "give more memory"


def test_another_error_is_reported_by_its_last_line():
    assert str(explain_failure(RuntimeError("a\nb\n"), "labelling")) == "labelling stopped: b"
    assert str(explain_failure(RuntimeError(), "labelling")) == "labelling stopped: RuntimeError"


RAY_ADVICE = """
Failed to apply UDF transform after 1/1 attempts (total backoff 0.0s).
To change retry attempts, backoff, or which errors are retried, configure `ray.data.DataContext.get_current()`."""


def wrap(cause):
    """Return the error of a stage as Ray Data 2.60 raises it: the cause as text, then its own error and advice."""
    return RuntimeError(
        f"ray::MapWorker(MapBatches(_RunWork)).submit() (pid=1, ip=10.0.0.1)\n"
        f'  File "prefix.py", line 17, in __call__\n    raise\n{cause}\n\n'
        "The above exception was the direct cause of the following exception:\n\n"
        "ray::MapWorker(MapBatches(_RunWork)).submit() (pid=1, ip=10.0.0.1)\n"
        f"ray.exceptions.UserCodeException: UDF failed to process a data block.{RAY_ADVICE}"
    )


def test_the_cause_is_reported_and_not_rays_advice():
    told = explain_failure(wrap("ValueError: no such layer"), "computing")
    assert str(told) == "computing stopped: ValueError: no such layer"
    graph = (
        "tensorflow.python.framework.errors_impl.UnknownError: Graph execution error:\n\n"
        "Detected at node base/conv2d/Conv2D defined at (most recent call last):\n<stack traces unavailable>\n"
        "could not create a primitive descriptor for a convolution\n\t [[{{node base/conv2d/Conv2D}}]]"
    )
    assert str(explain_failure(wrap(graph), "computing")).endswith(
        "stopped: could not create a primitive descriptor for a convolution"
    )


def test_our_error_that_comes_as_text_keeps_its_class():
    told = explain_failure(wrap("tlray.errors.WeightsError: the weights are of another network"), "computing")
    assert isinstance(told, WeightsError)
    assert str(told) == "the weights are of another network"


def test_errors_that_cause_each_other_do_not_loop():
    one, two = RuntimeError("one"), RuntimeError("two")
    one.__cause__, two.__cause__ = two, one
    assert str(explain_failure(one, "training")) == "training stopped: one"


def test_the_cause_that_ray_keeps_as_an_attribute_is_found():
    error = RuntimeError("a task failed")
    error.cause = DivergedError("the loss is nan")
    assert explain_failure(error, "training") is error.cause


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "http://127.0.0.1:8265", "https://head:8265"])
def test_the_address_of_something_else_is_refused(address):
    with pytest.raises(UsageError, match=r"--address takes HOST:PORT of the cluster's head, .* use tlray submit"):
        _check_address(address)


OUT_OF_MEMORY = """1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.7, \
ID: 32dba6875b8567) was 15.27GB used / 16.00GB limit (0.954207)
OOM kill reason: Memory usage 4546367488B exceeded threshold
Consider
Top 10 memory users: PID\tMEM(GB)\tCOMMAND
28069\t6.77\t/opt/venv/bin/python -m somebody.elses --token abc
9189\t3.45\tray::RayTrainWorker
9190\t3.40\tray::RayTrainWorker
28290\t0.22\tray::Channel
28291\t0.16\tray::_StatsActor
Refer to the documentation on how to address the out of memory issue: set RAY_memory_usage_threshold"""


def test_a_process_that_ray_killed_for_memory_is_told_with_what_held_it():
    told = str(explain_failure(RuntimeError(OUT_OF_MEMORY), "training"))
    assert told == (
        "training stopped: the memory of 10.0.0.7 was full, 15.27 of 16.00 GB (most of it: python 6.77 GB, "
        "ray::RayTrainWorker 3.45 GB, ray::RayTrainWorker 3.40 GB, ray::Channel 0.22 GB), and Ray killed a process "
        "there; lower --batch-size, --num-workers or --max-cpus, or use machines with more memory; the same command "
        "resumes"
    )
    without = OUT_OF_MEMORY.partition("Top 10")[0]
    assert "15.27 of 16.00 GB, and Ray killed" in str(explain_failure(RuntimeError(without), "training"))
