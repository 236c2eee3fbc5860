"""Ports for servers that start after their port was chosen, or restart: nothing else gets them in the meantime.

They are below those that the system assigns automatically, and each process of a test run has its own range.
"""

import itertools
import os
import random
import socket
from contextlib import suppress

_SHARE = 1_000
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 20
_FIRST = 10_000 + _WORKER * _SHARE
# Another test run on this machine begins elsewhere.
_next = itertools.chain(range(random.randrange(_SHARE), _SHARE), itertools.cycle(range(_SHARE)))


def free_port() -> int:
    """A port of 127.0.0.1 on which nothing listens, and which no other caller has been given lately."""
    for number in _next:
        with suppress(OSError), socket.create_server(("127.0.0.1", _FIRST + number)):
            return _FIRST + number
    raise AssertionError
