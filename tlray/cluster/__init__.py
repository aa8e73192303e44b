"""The Ray cluster: joined or started, its machines, what it has room for, and what must hold on it.

Ray takes a second to import and not every command needs it: `connect` imports it, and the modules built on it, inside
its functions; nothing outside this package imports `nodes`, `capacity` or `checks` at its top.
"""
