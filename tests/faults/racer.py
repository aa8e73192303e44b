"""One of several processes that race for a lock: `python -m tests.faults.racer OUTPUT FOLDER TURNS`.

Whoever holds it makes a file that must not be there yet, stays a moment, and removes it; at the end it prints how often
another one was inside too.
"""

import random
import sys
import time
from pathlib import Path

from tlray.errors import StoppedError
from tlray.storage import lock


def race(output: str, folder: str, turns: int) -> int:
    lock._LOOK_S = 0.02
    inside = Path(folder, "inside")
    met = 0
    for _ in range(turns):
        with lock.Lock(output, wait_s=120) as held:
            try:
                inside.open("x").close()
            except FileExistsError:
                met += 1
            time.sleep(random.uniform(0, 0.05))
            held.check()
            inside.unlink(missing_ok=True)
    return met


if __name__ == "__main__":
    try:
        print(race(sys.argv[1], sys.argv[2], int(sys.argv[3])))
    except StoppedError as error:
        print(error)
