from tlray.output.shares import FORMAT, NAME, Shares, read_shares, write_shares

SHARES = Shares(FORMAT, "run", "m" * 64, 100, {"a": 0.4, "b": 0.6}, {"a": 0.3, "b": 0.7})


def test_shares_are_read_as_they_were_written(tmp_path):
    write_shares(str(tmp_path), SHARES)
    assert read_shares(str(tmp_path), "run") == SHARES


def test_shares_of_another_run_or_none_are_none(tmp_path):
    assert read_shares(str(tmp_path), "run") is None
    write_shares(str(tmp_path), SHARES)
    assert read_shares(str(tmp_path), "later") is None
    (tmp_path / NAME).write_text("no record")
    assert read_shares(str(tmp_path), "run") is None
