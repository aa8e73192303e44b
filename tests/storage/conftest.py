"""An S3 bucket in this process."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from moto import mock_aws

from tlray.storage import s3_client

BUCKET = "tlray-units"


def forget_clients() -> None:
    for cached in (s3_client._make_client, s3_client._make_store, s3_client.get_options):
        cached.cache_clear()


def clear_environment(patch: pytest.MonkeyPatch, folder: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        patch.delenv(name)
    patch.setenv("AWS_CONFIG_FILE", str(folder / "no-config"))
    patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "no-credentials"))
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    patch.setenv(s3_client.OPTIONS_VARIABLE, "{}")  # so that undoing the patch undoes `configure` too
    forget_clients()


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    """An environment without settings or credentials of AWS, and no clients of another test."""
    clear_environment(monkeypatch, tmp_path)
    yield monkeypatch
    forget_clients()


@pytest.fixture(scope="module")
def _mocked_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """moto's S3 for the tests of a module: a client takes a second to make."""
    with pytest.MonkeyPatch.context() as patch:
        clear_environment(patch, tmp_path_factory.mktemp("aws"))
        with mock_aws():
            yield
    forget_clients()


@pytest.fixture
def bucket(_mocked_s3: None) -> Iterator[Any]:
    """A boto3 client of an empty bucket `BUCKET`.

    tlray reads keys with an empty part, as "a//b", through boto3: tests of reading use such keys.
    """
    client = s3_client.get_client()
    client.create_bucket(Bucket=BUCKET)
    yield client
    if s3_client.get_options() != s3_client.S3Options():
        s3_client.configure(s3_client.S3Options())
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        for item in page.get("Contents", ()):
            client.delete_object(Bucket=BUCKET, Key=item["Key"])
    client.delete_bucket(Bucket=BUCKET)
