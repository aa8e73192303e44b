import colorsys
import importlib
import os
import sys

import pytest

from tlray.model.tf_imports import _without, enable_onednn


def test_packages_are_missing_only_inside():
    with _without("colorsys", "this_is_not_installed"):
        for name in ("colorsys", "this_is_not_installed"):
            with pytest.raises(ModuleNotFoundError):
                importlib.import_module(name)
    assert importlib.import_module("colorsys") is colorsys
    assert "this_is_not_installed" not in sys.modules


def test_packages_come_back_after_an_error():
    def fail():
        with _without("colorsys", "this_is_not_installed"):
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
