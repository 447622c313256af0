"""`Metrics`: numbers for monitoring, in Prometheus' format."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector


class Metrics:
    """What one server counts; ``load`` gives the backend's numbers when they are asked for."""

    def __init__(self, load: Callable[[], dict[str, float]] | None = None) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "personae_requests", "Requests.", ["method", "route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "personae_request_seconds",
            "Until the last byte of the reply.",
            ["route"],
            buckets=(0.005, 0.02, 0.1, 0.5, 2, 10, 60),
            registry=self.registry,
        )
        self.running = Gauge("personae_requests_running", "Requests that are being served.", registry=self.registry)
        self.tokens = Counter("personae_tokens", "Tokens of replies.", ["kind"], registry=self.registry)
        self.answers = Counter("personae_answers", "Personas x questions.", ["by"], registry=self.registry)
        if load is not None:
            self.registry.register(_Load(load))

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """``status`` 0: the client left before there was a reply."""
        self._requests.labels(method if method in _METHODS else "(other)", route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)


_METHODS = ("GET", "HEAD", "POST", "DELETE", "OPTIONS")


class _Load(Collector):
    def __init__(self, load: Callable[[], dict[str, float]]) -> None:
        self._load = load

    def collect(self) -> Iterator[GaugeMetricFamily]:
        for name, value in self._load().items():
            yield GaugeMetricFamily(f"personae_backend_{name}", f"Of the backend: {name}.", value=value)
