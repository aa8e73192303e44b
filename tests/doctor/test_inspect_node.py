import threading
from importlib import metadata

import psutil
import pytest

from tests.doctor.data import PLACES, VERSIONS
from tlray.doctor import inspect_node
from tlray.doctor.inspect_node import Location, Trouble


def test_local_locations_are_tried(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"a picture")
    (tmp_path / "empty").mkdir()
    locations = [
        Location("--input", "x", str(tmp_path)),
        Location("--input", "x", str(tmp_path / "a.jpg"), found=True),
        Location("--input", "x", str(tmp_path / "empty")),
        Location("--input", "x", str(tmp_path / "nowhere")),
        Location("--output", "x", str(tmp_path), writes=True),
        Location("--output", "x", str(tmp_path / "nowhere"), writes=True),
    ]
    told = [trouble and trouble.code for trouble in inspect_node.try_locations(locations)]
    assert told == [None, None, "NOT_FOUND", "NOT_FOUND", None, "NOT_FOUND"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jpg", "empty"]


def test_a_location_that_hangs_is_a_timeout(monkeypatch):
    done = threading.Event()
    monkeypatch.setattr(inspect_node, "PATIENCE_S", 0.1)
    monkeypatch.setattr(inspect_node, "_try", lambda location: done.wait(10) and None)
    (trouble,) = inspect_node.try_locations([PLACES[0]])
    done.set()
    assert trouble == Trouble("TIMEOUT", "no answer in 0.1 s")


def test_an_unexpected_error_is_reported_without_secrets(monkeypatch):
    def fail(uri):
        raise ValueError("https://user:secret@store/x\nmore")

    monkeypatch.setattr(inspect_node.storage, "find_any", fail)
    (trouble,) = inspect_node.try_locations([PLACES[1]])
    assert trouble == Trouble("ValueError", "https://***@store/x")


def test_versions_are_read_without_importing():
    assert set(inspect_node.read_versions()) == set(VERSIONS)
    assert None not in inspect_node.read_versions().values()


@pytest.mark.parametrize(
    ("listed", "gpus"),
    [("GPU 0: H100 (UUID: a)\n  MIG 1g.10gb\nGPU 1: H100 (UUID: b)\n", 2), ("No devices found.\n", 0)],
)
def test_gpus_are_counted_by_the_driver_s_own_tool(listed, gpus, tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\nprintf '{listed}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert inspect_node._count_gpus() == gpus


def test_gpus_are_counted_without_the_tool_too(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(inspect_node, "_DRIVER_GPUS", tmp_path / "gpus")
    assert inspect_node._count_gpus() == 0
    (tmp_path / "gpus" / "0000:01:00.0").mkdir(parents=True)
    assert inspect_node._count_gpus() == 1


def test_memory_is_the_machines_where_no_container_limits_it(monkeypatch, tmp_path):
    monkeypatch.setattr(inspect_node, "_MEMORY_LIMITS", (str(tmp_path / "none"),))
    assert inspect_node._measure_memory() == psutil.virtual_memory().total
    (tmp_path / "limit").write_text("123456\n")
    monkeypatch.setattr(inspect_node, "_MEMORY_LIMITS", (str(tmp_path / "limit"),))
    assert inspect_node._measure_memory() == 123456


def test_a_container_may_take_all_where_its_limit_is_max(monkeypatch, tmp_path):
    (tmp_path / "limit").write_text("max\n")
    monkeypatch.setattr(inspect_node, "_MEMORY_LIMITS", (str(tmp_path / "limit"),))
    assert inspect_node._measure_memory() == psutil.virtual_memory().total


def test_a_folder_to_read_is_replaced_by_a_file_in_it(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"a picture")
    (tmp_path / "none.csv").touch()
    locations = [
        Location("--input", "x", str(tmp_path / "a.jpg")),
        Location("--input", "x", str(tmp_path / "none.csv")),
        Location("--input", "x", str(tmp_path / "gone")),
        Location("--output", "x", str(tmp_path), writes=True),
    ]
    file, empty, gone, output = inspect_node.find_targets(locations)
    assert (file.target, file.found) == (str(tmp_path / "a.jpg"), True)
    assert (empty.target, empty.found) == (str(tmp_path / "none.csv"), False)  # an empty file has no byte to read
    assert (gone, output) == (locations[2], locations[3])


def test_a_location_that_hangs_while_it_is_listed_stays_as_it_is(monkeypatch):
    done = threading.Event()
    monkeypatch.setattr(inspect_node, "PATIENCE_S", 0.1)
    monkeypatch.setattr(inspect_node, "_find_target", lambda location: done.wait(10) and None)
    assert inspect_node.find_targets(PLACES[:1]) == PLACES[:1]
    done.set()


def test_tensorflow_for_cpus_counts_as_tensorflow(monkeypatch):
    installed = {"tensorflow-cpu": "2.21.0", "ray": "2.60.0"}

    def version(package):
        if package not in installed:
            raise metadata.PackageNotFoundError(package)
        return installed[package]

    monkeypatch.setattr(inspect_node.metadata, "version", version)
    versions = inspect_node.read_versions()
    assert (versions["tensorflow"], versions["ray"], versions["keras"]) == ("2.21.0", "2.60.0", None)


def test_a_report_describes_this_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi
    monkeypatch.setattr(inspect_node, "_DRIVER_GPUS", tmp_path / "gpus")
    monkeypatch.setattr(inspect_node, "_SHARED_MEMORY", tmp_path / "shm")
    monkeypatch.setattr(inspect_node, "get_session_folder", lambda: str(tmp_path))
    monkeypatch.setattr(inspect_node, "is_token_required", lambda: True)
    report = inspect_node.report_node([Location("--input", "x", str(tmp_path / "gone"))])
    assert (report.gpus, report.shm_bytes, report.token) == (0, None, True)
    assert report.spill_free_bytes > 0
    assert report.versions == inspect_node.read_versions()
    assert [trouble.code for trouble in report.troubles] == ["NOT_FOUND"]
    monkeypatch.setattr(inspect_node, "_SHARED_MEMORY", tmp_path)
    assert inspect_node.report_node([]).shm_bytes > 0
