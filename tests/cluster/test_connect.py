from tlray.cluster.connect import explain_failure
from tlray.errors import DataError, StoppedError, WeightsError


def test_the_reason_is_found_inside_what_was_wrapped_around_it():
    try:
        try:
            raise DataError("the reason")
        except DataError as error:
            raise RuntimeError("a task failed") from error
    except RuntimeError as error:
        told = explain_failure(error, "labelling")
    assert isinstance(told, DataError)


def test_a_reason_that_came_as_text_is_said_without_its_class():
    text = (
        "The actor died because of an error raised in its creation task\n  tlray.errors.StoppedError: give more memory"
    )
    told = explain_failure(RuntimeError(text), "labelling")
    assert isinstance(told, StoppedError)
    assert str(told) == "give more memory"


def test_what_is_not_ours_is_told_by_its_last_line():
    assert str(explain_failure(RuntimeError("a\nb\n"), "labelling")) == "labelling stopped: b"
    assert str(explain_failure(RuntimeError(), "labelling")) == "labelling stopped: RuntimeError"


RAY_ADVICE = """
Failed to apply UDF transform after 1/1 attempts (total backoff 0.0s).
To change retry attempts, backoff, or which errors are retried, configure `ray.data.DataContext.get_current()`."""


def wrap(cause):
    """As Ray Data 2.60 tells what a stage raised: the cause as text, then its own error with advice on its settings."""
    return RuntimeError(
        f"ray::MapWorker(MapBatches(_RunWork)).submit() (pid=1, ip=10.0.0.1)\n"
        f'  File "prefix.py", line 17, in __call__\n    raise\n{cause}\n\n'
        "The above exception was the direct cause of the following exception:\n\n"
        "ray::MapWorker(MapBatches(_RunWork)).submit() (pid=1, ip=10.0.0.1)\n"
        f"ray.exceptions.UserCodeException: UDF failed to process a data block.{RAY_ADVICE}"
    )


def test_the_cause_is_told_and_not_rays_advice():
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


def test_an_error_of_ours_keeps_its_kind_where_it_comes_as_text():
    told = explain_failure(wrap("tlray.errors.WeightsError: the weights are of another network"), "computing")
    assert isinstance(told, WeightsError)
    assert str(told) == "the weights are of another network"
