from tlray.errors import DataError, StoppedError
from tlray.runtime import explain_failure


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
