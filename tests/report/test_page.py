import math

import jinja2
import pytest

from tlray.report.page import (
    clean,
    format_count,
    format_decimal,
    format_duration,
    format_file,
    format_moment,
    format_name,
    format_percent,
    format_points,
    keep_frequent,
    render,
    shorten,
)

UNSEEN = "\N{REPLACEMENT CHARACTER}"


def test_names_are_cut_in_their_middle():
    assert shorten("a" * 10 + "b" * 10, 9) == "aaaa\N{HORIZONTAL ELLIPSIS}bbbb"
    assert shorten("a" * 10, 10) == "a" * 10
    wide = shorten("\N{CJK UNIFIED IDEOGRAPH-4E00}" * 20, 9)
    assert len(wide) == 5


def test_invisible_characters_and_secrets_are_removed():
    assert clean("a\x00b\N{RIGHT-TO-LEFT OVERRIDE}\ud800") == f"a{UNSEEN}b{UNSEEN}{UNSEEN}"
    assert clean("a\N{ZERO WIDTH JOINER}b") == "a\N{ZERO WIDTH JOINER}b"
    assert "secret" not in clean("s3://b/k?X-Amz-Signature=secret")


def test_a_name_is_isolated_and_escaped_with_the_whole_in_its_title():
    assert format_name("<b>") == "<bdi>&lt;b&gt;</bdi>"
    assert format_name("a" * 40, 5) == f'<bdi title="{"a" * 40}">aa\N{HORIZONTAL ELLIPSIS}aa</bdi>'
    assert format_name('"' + "a" * 40, 5).startswith('<bdi title="&#34;aaa')


def test_a_file_shows_the_last_part_of_its_address():
    assert format_file("s3://bucket/folder/a.jpg") == '<bdi title="s3://bucket/folder/a.jpg">a.jpg</bdi>'
    assert format_file("/folder/") == '<bdi title="/folder/">folder</bdi>'
    assert format_file("a.jpg") == "<bdi>a.jpg</bdi>"


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.9234, "92.3%"),
        (0.99996, ">99.9%"),
        (0.00001, "<0.1%"),
        (1.0, "100.0%"),
        (0.0, "0.0%"),
        (math.nan, "\N{EN DASH}"),
        (None, "\N{EN DASH}"),
    ],
)
def test_percentages_are_never_rounded_to_all_or_nothing(share, text):
    assert format_percent(share) == text


def test_percentages_without_decimals_are_not_rounded_to_all_or_nothing_either():
    assert [format_percent(share, 0) for share in (0.004, 0.5, 0.996)] == ["<1%", "50%", ">99%"]


def test_numbers_have_separators_and_fixed_digits():
    assert format_count(12345) == "12,345"
    assert format_decimal(1234.56789) == "1,234.568"
    assert format_decimal(0.5, 1) == "0.5"
    assert [format_decimal(value) for value in (None, math.nan, math.inf)] == ["\N{EN DASH}"] * 3
    assert format_points(0.0234) == "2.3 points"


@pytest.mark.parametrize(
    ("seconds", "text"), [(119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2.0 h"), (3.6e7, "10,000.0 h")]
)
def test_durations_have_a_readable_unit(seconds, text):
    assert format_duration(seconds) == text


def test_moments_have_no_seconds():
    assert format_moment("2026-11-23T06:03:35Z") == "2026-11-23 06:03 UTC"


def test_few_items_keep_their_order_and_of_many_the_most_frequent_come_first():
    assert keep_frequent("abc", [1, 3, 2], most=3) == ["a", "b", "c"]
    assert keep_frequent("abcd", [1, 3, 2, 3], most=3) == ["b", "d", "c"]


def test_a_template_without_its_values_is_an_error():
    with pytest.raises(jinja2.UndefinedError, match="headline"):
        render("evaluation.html", title="", data="/photos")
