import colorsys
import importlib
import os
import sys
from types import SimpleNamespace

import pytest

from tlray.model.tf_imports import enable_onednn, hide_packages, show_booked_gpus


def test_packages_are_missing_only_inside():
    with hide_packages("colorsys", "this_is_not_installed"):
        for name in ("colorsys", "this_is_not_installed"):
            with pytest.raises(ModuleNotFoundError):
                importlib.import_module(name)
    assert importlib.import_module("colorsys") is colorsys
    assert "this_is_not_installed" not in sys.modules


def test_packages_come_back_after_an_error():
    def fail():
        with hide_packages("colorsys", "this_is_not_installed"):
            raise ValueError

    with pytest.raises(ValueError):
        fail()
    assert sys.modules["colorsys"] is colorsys
    assert "this_is_not_installed" not in sys.modules


@pytest.mark.parametrize("value", ["0", "1"])
def test_the_users_choice_of_onednn_is_kept(monkeypatch, value):
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", value)
    enable_onednn()
    assert os.environ["TF_ENABLE_ONEDNN_OPTS"] == value


@pytest.mark.parametrize(
    ("booked", "before", "visible"),
    [({"GPU": ["2", "3"]}, "2,3", "2,3"), ({"GPU": ["0"]}, None, "0"), ({"GPU": []}, "0,1", "-1"), ({}, None, "-1")],
)
def test_a_process_sees_the_gpus_that_are_booked_for_it_alone(monkeypatch, booked, before, visible):
    """Ray leaves the variable alone where it books none."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if before is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before)
    resources = {"CPU": 1.0, "GPU": 0.5} if booked.get("GPU") else {"CPU": 1.0}
    context = SimpleNamespace(get_accelerator_ids=lambda: booked, get_assigned_resources=lambda: resources)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get_runtime_context=lambda: context))
    assert show_booked_gpus() == resources.get("GPU", 0.0)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == visible
