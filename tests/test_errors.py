import pickle

import pytest

from tlray import errors
from tlray.errors import (
    OK,
    UNREACHABLE,
    Code,
    ConfigError,
    FetchError,
    ImageError,
    InputError,
    StoppedError,
    TlrayError,
    UsageError,
    last_line,
)

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, TlrayError)]

EXAMPLES = [
    ConfigError(["--zoom takes 0 to 0.99; got 2", "--seed takes 0 to 1; got -1"]),
    InputError(Code.TOO_LARGE, "70 MB"),
    ImageError(Code.TRUNCATED, "the file ends early", 640, 480),
    ImageError(Code.EMPTY, "no bytes"),
    FetchError(Code.TIMEOUT, "no answer in 20 s"),
    *(kind("a message") for kind in KINDS if kind is not ConfigError and not issubclass(kind, InputError)),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_errors_cross_processes_unchanged(error):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)
    assert copy.args == error.args


def test_every_kind_of_error_has_an_example():
    assert {type(error) for error in EXAMPLES} == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_the_user_can_fix_has_exit_code_2(kind):
    assert kind.exit_code == (2 if issubclass(kind, UsageError) else 1)
    assert not (issubclass(kind, UsageError) and issubclass(kind, StoppedError | InputError))


def test_a_config_error_is_printed_a_line_per_fault():
    assert str(ConfigError(iter(["one", "two"]))) == "one\ntwo"
    assert ConfigError(iter(["one", "two"])).faults == ("one", "two")
    assert str(ConfigError([])) == ""


def test_an_input_error_is_printed_without_its_code():
    assert str(FetchError(Code.DENIED, "access denied")) == "access denied"


def test_an_image_error_keeps_the_size_in_its_header():
    error = ImageError(Code.BOMB, "too many pixels", width=20_000, height=10_000)
    assert (error.code, error.width, error.height) == (Code.BOMB, 20_000, 10_000)
    assert (ImageError(Code.CORRUPT, "x").width, ImageError(Code.CORRUPT, "x").height) == (None, None)


def test_codes_are_written_by_their_names():
    assert {str(code): code.name for code in Code} == {code.name: code.name for code in Code}
    assert OK not in set(Code)
    assert {"DENIED", "THROTTLED", "TIMEOUT"} == UNREACHABLE


# ---- the last line of a message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one line", "one line"),
        ("Traceback (most recent call last):\n  File x\nValueError: no such layer\n", "ValueError: no such layer"),
        ("  the cause  \n\n  \n", "the cause"),
        ("the cause\n\t [[{{node base/conv2d/Conv2D}}]]", "the cause"),
        ("the cause\nFailed to apply UDF transform after 1/1 attempts (total backoff 0.0s).", "the cause"),
        ("the cause\nTo change retry attempts, backoff, or more, configure `DataContext`.", "the cause"),
        ("the cause\nThis looks like an AWS S3 transient error.", "the cause"),
        ("Failed to read after many attempts", "Failed to read after many attempts"),
        ("first\n\nThe above exception was the direct cause of the following exception:\n\nsecond", "first"),
        ("first\n \nDuring handling of the above exception, another exception occurred:\n\nsecond", "first"),
        ("", "RuntimeError"),
        (" \n\n", "RuntimeError"),
        ("\t [[{{node base/conv2d/Conv2D}}]]", "RuntimeError"),
    ],
)
def test_the_last_line_is_the_cause(text, expected):
    assert last_line(RuntimeError(text)) == expected


def test_a_text_has_a_last_line_too():
    assert last_line("a\nb\n") == "b"
    assert last_line("") == "str"
