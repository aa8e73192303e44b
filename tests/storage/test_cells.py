from tlray.storage.cells import disarm, rearm


def test_formulas_are_disarmed_and_come_back():
    cells = ["=1", "+1", "-1", "@x", "\t=1", "\r", "\n=1", "'=1", "''=1", "\uff1d1", "'x", "x=1", "", "'", "a-b", "/=x"]
    for cell in cells:
        assert rearm(disarm(cell)) == cell
        assert not disarm(cell).startswith(("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d"))
    assert disarm("=1") == "'=1"
    assert disarm("/a=1") == "/a=1"
