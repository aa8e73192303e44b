from pathlib import Path

import pytest

from tlray.storage.addresses import is_s3, join, redact, resolve, split_s3


@pytest.mark.parametrize(
    ("uri", "expected"), [("s3://bucket/key", True), ("s3:/bucket", False), ("/data/s3://x", False), ("S3://b", False)]
)
def test_only_the_scheme_makes_an_address_s3(uri, expected):
    assert is_s3(uri) is expected


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://bucket", ("bucket", "")),
        ("s3://bucket/", ("bucket", "")),
        ("s3://bucket/a/b.png", ("bucket", "a/b.png")),
        ("s3://bucket//a//b/", ("bucket", "/a//b/")),
        ("s3://bucket/a%20b?c=1#d", ("bucket", "a%20b?c=1#d")),
        ("s3://bucket/s3://other/x", ("bucket", "s3://other/x")),
    ],
)
def test_a_key_is_taken_as_it_is(uri, expected):
    assert split_s3(uri) == expected


def test_local_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert resolve("images/") == str(tmp_path / "images")
    assert resolve("/data/a//b/") == "/data/a/b"
    assert resolve("~/images") == "/home/somebody/images"


def test_a_link_in_a_local_path_stays(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    assert resolve(str(tmp_path / "link" / "a")) == str(Path(tmp_path) / "link" / "a")


def test_an_s3_address_loses_only_its_trailing_slashes():
    assert resolve("s3://bucket/a//b//") == "s3://bucket/a//b"
    assert resolve("s3://bucket") == "s3://bucket"


def test_names_are_joined_by_one_slash():
    assert join("s3://bucket/a/", "b", "c.png") == "s3://bucket/a/b/c.png"
    assert join("/data", "b") == "/data/b"
    assert join("/", "b") == "/b"


@pytest.mark.parametrize("text", ["s3://bucket/icon@2x.png", "/home/me@work/a.png", "s3://bucket/a/b@c/d.png"])
def test_names_with_an_at_sign_stay(text):
    assert redact(text) == text


@pytest.mark.parametrize(
    "text", ["3 keys accessed: 4", "no secret here", "AKIA is short", "https://host/x?page=2&tokens=3"]
)
def test_harmless_texts_stay(text):
    assert redact(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://token@host/x", "https://***@host/x"),
        ("s3://key:se/cr/et@bucket/x", "s3://***@bucket/x"),
        (
            "GET https://user:hunter2@host/k?X-Amz-Signature=abc123&part=1 failed",
            "GET https://***@host/k?X-Amz-Signature=***&part=1 failed",
        ),
        ("https://host/k?part=1&sig=abc&x-goog-signature=def", "https://host/k?part=1&sig=***&x-goog-signature=***"),
        ('"https://host/k?token=abc" failed', '"https://host/k?token=***" failed'),
        ("key AKIAABCDEFGHIJKLMNOP and ASIAABCDEFGHIJKLMNOP", "key *** and ***"),
        ("aws_secret_access_key = abc/def+1", "aws_secret_access_key = ***"),
        ('{"SecretAccessKey": "abc", "n": 1}', '{"SecretAccessKey": "***", "n": 1}'),
    ],
)
def test_secrets_are_replaced(text, expected):
    assert redact(text) == expected
