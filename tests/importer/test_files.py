import io
import json
import zipfile

import pytest

from tests.model.data import CONFIG
from tlray.errors import ConfigError, WeightsError
from tlray.importer.files import read_model


def make_archive(config=CONFIG, **metadata):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("metadata.json", json.dumps({"keras_version": "3.15.1", **metadata}))
        file.writestr("config.json", json.dumps(config))
    return buffer.getvalue()


def test_a_keras_3_archive_is_read(tmp_path):
    (tmp_path / "m.keras").write_bytes(make_archive())
    assert read_model(str(tmp_path / "m.keras")) == make_archive()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\x89HDF\r\n\x1a\n" + bytes(100), r"is a legacy HDF5 file; convert it with Keras 3 \(import keras; .*\.save"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer; git lfs pull"),
        (b"<html>not found</html>", "is no Keras archive; save the model with Keras 3"),
        (make_archive()[:150], "is cut short or damaged; copy it again"),
        (make_archive(keras_version="2.15.0"), r"was saved by Keras 2\.15\.0; load it with Keras 2"),
        (make_archive({"module": "keras.src.engine.functional"}), "was saved by Keras 2; load it with Keras 2"),
        (b"PK\x05\x06" + bytes(18), "is a zip archive without a Keras model"),
    ],
)
def test_other_files_are_named_with_the_way_out(tmp_path, data, expected):
    (tmp_path / "m.keras").write_bytes(data)
    with pytest.raises(WeightsError, match=expected):
        read_model(str(tmp_path / "m.keras"))


def test_a_folder_and_a_missing_file_are_named(tmp_path):
    with pytest.raises(WeightsError, match=r"is a folder \(a SavedModel\?\)"):
        read_model(str(tmp_path))
    with pytest.raises(ConfigError, match=r"the model .*none\.keras cannot be read"):
        read_model(str(tmp_path / "none.keras"))
