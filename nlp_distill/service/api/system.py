"""How the service is: for people, for load balancers, for Prometheus."""

from __future__ import annotations

import contextlib
import functools
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from sqlalchemy import func, select, update
from sqlalchemy.exc import OperationalError

from nlp_distill import __version__
from nlp_distill.service.api.models import Health, System
from nlp_distill.service.api.service import Reader, Served, Service
from nlp_distill.service.home import now_ms
from nlp_distill.service.store import journal
from nlp_distill.service.store.tables import workers
from nlp_distill.web.problems import Problem, problems

router = APIRouter(tags=["system"])
PACKAGES = ("torch", "transformers", "datasets", "accelerate", "optimum", "onnxruntime", "fastapi", "sqlalchemy")
QUIET_MS = 60_000
"""A worker that was not seen for so long does not count."""
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


def workers_seen(service: Service) -> int:
    """Workers that gave a sign of life lately."""
    wanted = select(func.count()).select_from(workers).where(workers.c.seen_at > now_ms() - QUIET_MS)
    with service.database.reading() as connection:
        return int(connection.execute(wanted).scalar_one())


@router.get("/v1/system")
def system(service: Served, _: Reader) -> System:
    """Versions, devices, disk, queue."""
    with service.database.reading() as connection:
        counts = service.queue.counts(connection)
    return System(
        version=__version__,
        jobs=counts,
        workers=workers_seen(service),
        cores=os.cpu_count() or 1,
        devices=_devices(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        disk_free_bytes=service.free_disk(),
        versions=_versions(),
    )


@functools.cache
def _versions() -> dict[str, str]:
    """Of the packages that are installed; what they were when this process began to answer."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _devices() -> list[str]:
    """GPUs as their driver names them: asking PyTorch would load it."""
    found = []
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        lines = dict(line.split(":", 1) for line in file.read_text().splitlines() if ":" in line)
        found.append(lines.get("Model", "NVIDIA GPU").strip())
    return found or ["cpu"]


@router.get("/health/live")
async def live() -> Health:
    """The server answers."""
    return Health()


@router.get("/health/ready", responses=problems(503))
def ready(service: Served) -> Health:
    """Jobs can be submitted and will be done: the database takes writes, the disk has room, a worker lives."""
    try:
        with service.database.writing() as connection:
            connection.execute(update(workers).where(workers.c.id == "").values(slots=0))
    except OperationalError as error:
        raise Problem(503, "database", "The database cannot be written.", {"Retry-After": "10"}) from error
    if service.draining or service.free_disk() < service.limits.free_disk:
        raise Problem(503, "unavailable", "The server is stopping, or its disk is nearly full.", {"Retry-After": "10"})
    if workers_seen(service) == 0:
        raise Problem(503, "no_worker", "No worker is there; start `nlp-distill worker`.", {"Retry-After": "10"})
    return Health()


class _Figures:
    """Read when they are asked for."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def collect(self) -> list[GaugeMetricFamily | CounterMetricFamily]:
        service = self.service
        with service.database.reading() as connection:
            counts, events = service.queue.counts(connection), journal.count(connection)
        jobs = GaugeMetricFamily("nlpd_jobs", "Jobs of each status.", labels=["status"])
        for status, number in counts.items():
            jobs.add_metric([status], number)
        requests = CounterMetricFamily("nlpd_requests", "Requests answered.", labels=["method", "status"])
        for (method, status_code), number in sorted(service.requests.items()):
            requests.add_metric([method, str(status_code)], number)
        return [
            jobs,
            requests,
            GaugeMetricFamily("nlpd_events", "Events of all jobs.", value=events),
            GaugeMetricFamily("nlpd_workers", "Workers that gave a sign of life lately.", value=workers_seen(service)),
            GaugeMetricFamily("nlpd_streams", "Open streams.", value=service.feed.of_tokens.total()),
            GaugeMetricFamily("nlpd_disk_free_bytes", "Bytes that can be written.", value=service.free_disk()),
        ]


@router.get("/metrics", response_class=Response, responses={200: {"content": {PROMETHEUS.partition(";")[0]: {}}}})
def figures(service: Served, _: Reader) -> Response:
    """For Prometheus; no label is a job or a text."""
    registry = CollectorRegistry()
    registry.register(_Figures(service))  # type: ignore[arg-type]
    return Response(generate_latest(registry), media_type=PROMETHEUS)
