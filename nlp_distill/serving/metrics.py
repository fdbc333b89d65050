"""What Prometheus reads at /metrics; no label holds anything that a client chooses."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        model = ["model"]
        self.requests = Counter(
            "nlpd_predictions",
            "Requests for predictions, by how they ended.",
            [*model, "outcome"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "nlpd_prediction_seconds",
            "Time from a request's arrival at the queue to its answer.",
            model,
            buckets=SECONDS,
            registry=self.registry,
        )
        self.engine_seconds = Histogram(
            "nlpd_engine_seconds", "Time inside the engine.", model, buckets=SECONDS, registry=self.registry
        )
        self.together = Histogram(
            "nlpd_requests_together",
            "Requests that an engine took from its queue at once.",
            model,
            buckets=(1, 2, 4, 8, 16),
            registry=self.registry,
        )
        self.rows = Gauge("nlpd_queue_rows", "Inputs that wait or are worked on.", model, registry=self.registry)
        self.up = Gauge("nlpd_engine_up", "1 where the engine can answer.", model, registry=self.registry)
        self.restarts = Counter("nlpd_engine_restarts", "Engines started anew.", model, registry=self.registry)
