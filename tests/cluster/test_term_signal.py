import signal
import threading

from tlray.cluster.term_signal import TermSignal


def test_the_first_sigterm_stops_and_the_old_handler_comes_back(capsys):
    before = signal.getsignal(signal.SIGTERM)
    stopped = threading.Event()
    with TermSignal(stopped.set, "finishing the rows") as term:
        assert not term.received
        signal.raise_signal(signal.SIGTERM)
        assert term.received
        assert signal.getsignal(signal.SIGTERM) == before  # a second one ends the process
        assert stopped.wait(10)
    assert signal.getsignal(signal.SIGTERM) == before
    assert "SIGTERM: finishing the rows" in capsys.readouterr().out
