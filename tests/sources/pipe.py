"""A pipe, for archives that were written to one."""

import io


class Pipe(io.RawIOBase):
    """A file that cannot be sought, so that a zip in it has its sizes behind the data."""

    def __init__(self):
        self.data = bytearray()

    def writable(self):
        return True

    def write(self, data):
        self.data += data
        return len(data)
