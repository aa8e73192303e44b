import pytest

from tlray.console import console


@pytest.fixture
def lines(capsys, monkeypatch):
    """Returns the lines printed so far, with single spaces and without empty ones."""
    monkeypatch.setattr(console, "_width", 200)
    return lambda: [" ".join(line.split()) for line in capsys.readouterr().out.splitlines() if line.strip()]
