"""One command: the API in this process, a worker beside it. Either may be killed; the other goes on."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import uvicorn

from nlp_distill.service.api.app import service_app
from nlp_distill.service.executors.contract import Executor, Unavailable
from nlp_distill.service.executors.local import LocalExecutor
from nlp_distill.service.executors.ray import RayExecutor
from nlp_distill.service.home import Home
from nlp_distill.service.page.app import SIGN_IN
from nlp_distill.service.processes import alive, signature
from nlp_distill.service.store.database import Database
from nlp_distill.service.store.queue import Queue
from nlp_distill.service.worker import Worker, WorkerSettings

log = logging.getLogger("nlp_distill.worker")
LOOK_S = 1.0
DRAIN_S = 10


class WorkerBeside:
    """Keeps a worker of this home running. One that an earlier server left is taken over, not doubled."""

    def __init__(self, home: Home, arguments: list[str]) -> None:
        self.home, self.arguments = home, arguments
        self._file = home.path / ".worker"
        self._process: subprocess.Popen[bytes] | None = None
        self._over = threading.Event()

    def watch(self) -> None:
        """Look once a second, until `end`."""
        while not self._over.wait(LOOK_S if self._process or self._left() else 0.0):
            if self._process is not None and self._process.poll() is not None:
                self._process = None
            if self._process is None and self._left() is None:
                self._start()

    def _left(self) -> str | None:
        with contextlib.suppress(OSError, ValueError):
            name = self._file.read_text(encoding="ascii")
            return name if alive(name) else None
        return None

    def _start(self) -> None:
        command = [sys.executable, "-m", "nlp_distill.cli", "worker", "--home", str(self.home.path), *self.arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
        self._file.write_text(signature(self._process.pid) or "", encoding="ascii")

    def end(self) -> None:
        """Ask the worker to stop with checkpoints; wait for it where it is ours."""
        self._over.set()
        name = self._left()
        if name is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(name.split(":")[0]), signal.SIGTERM)
        if self._process is not None:
            self._process.wait()


def executor_of(home: Home, ray: str | None) -> Executor:
    """Where attempts run: on the Ray cluster at this address, else here. Raises `RayUnfit`.

    One that does not answer may come: jobs wait for it.
    """
    if ray is None:
        return LocalExecutor()
    executor = RayExecutor(ray, home.ray)
    try:
        executor.cluster.check()
    except Unavailable as error:
        log.warning("jobs wait: %s", error)
    return executor


def run_worker(home: Home, settings: WorkerSettings, ray: str | None = None) -> None:
    """Work until SIGTERM or SIGINT; a second one stops at once. Raises `RayUnfit`."""
    executor = executor_of(home, ray)
    asked: list[int] = []

    def ask(number: int, _frame: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask)
    database = Database(home.make().database).migrate()
    Worker(home, Queue(database), executor, settings).serve(lambda: bool(asked))
    database.close()


def run_server(
    home: Home,
    host: str,
    port: int,
    hosts: tuple[str, ...],
    worker: list[str] | None,
    announce: Callable[[str], None] = lambda link: None,
) -> None:
    """Listen until SIGTERM or SIGINT. `worker`: arguments of the worker beside; None: there is none.

    `announce` gets the page's address, with a code that signs in once.
    """
    home.make().hold()
    app = service_app(home, hosts=hosts)
    announce(f"{_address(host, port)}{SIGN_IN}#{app.state.sessions.new_code()}")
    feed = app.state.service.feed
    beside = WorkerBeside(home, worker) if worker is not None else None
    if beside is not None:
        threading.Thread(target=beside.watch, name="worker", daemon=True).start()

    class Server(uvicorn.Server):
        """Ends streams first: they would last as long as their jobs."""

        def handle_exit(self, sig: int, frame: object) -> None:
            feed.close()
            super().handle_exit(sig, frame)  # type: ignore[arg-type]

    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        timeout_graceful_shutdown=DRAIN_S,
        server_header=False,
        access_log=False,
        log_level="warning",
        proxy_headers=False,
    )
    # uvicorn sends a signal on once it has stopped, and the end that was asked for is no failure.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    try:
        Server(config).run()
    finally:
        if beside is not None:
            beside.end()
        home.release()


def _address(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def listening_line(home: Home, host: str, port: int) -> list[str]:
    """What to tell whoever started it."""
    return [f"Listening on {_address(host, port)}", f"Token: in {Path(home.token)} (readable by you alone)"]
