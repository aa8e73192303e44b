"""moto's S3 API as a store with conditional writes has to be: moto tests a condition and writes in two steps.

python -m tests.faults.atomic_s3 PORT
"""

import sys
import threading

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

WRITES = ("PUT", "DELETE")


class OneWriteAtATime:
    def __init__(self, app):
        self._app = app
        self._lock = threading.Lock()

    def __call__(self, environ, start_response):
        if environ["REQUEST_METHOD"] not in WRITES:
            return self._app(environ, start_response)
        with self._lock:
            return list(self._app(environ, start_response))


if __name__ == "__main__":
    app = OneWriteAtATime(DomainDispatcherApplication(create_backend_app))
    run_simple("127.0.0.1", int(sys.argv[1]), app, threaded=True)
