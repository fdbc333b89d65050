"""Traps: what a model or a data set must never make this process do is recorded while a test looks."""

import ipaddress
import os
import sys
from contextlib import contextmanager

import pytest

STARTS_PROCESSES = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.startfile")


class Trap:
    """Watches one folder; audit hooks cannot be taken away, so one hook asks whether somebody looks."""

    def __init__(self):
        self.folder = None
        self.caught = []

    def __call__(self, event, arguments):
        if self.folder is None:
            return
        if event in STARTS_PROCESSES or event == "pickle.find_class":
            self.caught.append((event, str(arguments)))
        elif event in ("socket.connect", "socket.getaddrinfo"):
            address = arguments[1] if event == "socket.connect" else arguments[0]
            if not loopback(address):
                self.caught.append((event, str(address)))
        elif event in ("compile", "exec", "import", "ctypes.dlopen"):
            place = {"exec": lambda: arguments[0].co_filename, "ctypes.dlopen": lambda: arguments[0]}.get(
                event, lambda: arguments[1]
            )()
            if isinstance(place, str | bytes) and os.fsdecode(place).startswith(self.folder):
                self.caught.append((event, str(place)))
        elif event == "open" and isinstance(arguments[0], str):
            # Code is not even read.
            if arguments[0].startswith(self.folder) and arguments[0].endswith((".py", ".pyc", ".jinja")):
                self.caught.append((event, arguments[0]))


def loopback(address):
    host = address[0] if isinstance(address, tuple) else address
    if host is None or (isinstance(address, str) and address.startswith("/")):
        return True
    host = os.fsdecode(host)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


TRAP = Trap()
sys.addaudithook(TRAP)


@pytest.fixture
def trapped():
    """`with trapped(folder) as caught`: events that must not be, while the block runs."""

    @contextmanager
    def watch(folder):
        TRAP.folder, TRAP.caught = str(folder), []
        try:
            yield TRAP.caught
        finally:
            TRAP.folder = None

    return watch
