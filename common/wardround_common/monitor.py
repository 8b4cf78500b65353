"""Health and Prometheus metrics of a daemon, on this machine's loopback address only.

Rules.
- It listens on 127.0.0.1 and nowhere else, answers `GET /healthz` and `GET /metrics`, and never dials.
  Whoever can read it can read the daemon's status file too; a scraper that carries it further is the
  hospital's own, and its decision.
- Values are progress and constants of studies, ages of certificates, states of connections: nothing
  that depends on patients' data, no text, no count of records. Timing is what it is: see docs/sharp-edges.md.
- Healthy means that the daemon works as it should, waiting and being paused included: 200, else 503.
Not done here: what the values are (each role's `metrics`).

    >>> with Monitor(0, lambda: [Sample(name="up", help="1 while it runs", value=1.0)], lambda: None):  # doctest: +SKIP
    ...     ...
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from wardround_common.errors import ConfigError

ADDRESS = "127.0.0.1"
"""Never configurable: other machines have no business with a hospital's daemon."""

REQUEST_TIMEOUT_S = 5.0
"""A local reader that is slower than this is none."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One value: samples of one name share their help and the names of their labels."""

    name: str  # without the prefix `wardround_`
    help: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)


class Monitor:
    """The running endpoint; a context manager.

    Args:
        port: of 127.0.0.1; 0 takes any free one, see `port`.
        samples: the values now; asked at every scrape, from other threads.
        unhealthy: why the daemon does not work, or None.

    Raises:
        ConfigError: the port cannot be used.
    """

    def __init__(self, port: int, samples: Callable[[], Iterable[Sample]], unhealthy: Callable[[], str | None]) -> None:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Collector(samples))
        try:
            self._server = ThreadingHTTPServer((ADDRESS, port), _handler(registry, unhealthy))
        except OSError as error:
            raise ConfigError(
                "monitor-port",
                f"cannot listen on {ADDRESS}:{port} for health and metrics: {error.strerror}",
                next_step="choose another port in [monitor], or remove it",
            ) from None
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="monitor", daemon=True)

    def __enter__(self) -> "Monitor":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@dataclass(frozen=True)
class _Collector:
    """Prometheus' own name for something that is asked at every scrape."""

    samples: Callable[[], Iterable[Sample]]

    def collect(self) -> Iterator[Metric]:
        families: dict[str, GaugeMetricFamily] = {}
        for sample in self.samples():
            family = families.get(sample.name)
            if family is None:
                family = GaugeMetricFamily(f"wardround_{sample.name}", sample.help, labels=tuple(sample.labels))
                families[sample.name] = family
            family.add_metric(tuple(sample.labels.values()), sample.value)
        yield from families.values()


def _handler(registry: CollectorRegistry, unhealthy: Callable[[], str | None]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = REQUEST_TIMEOUT_S
        server_version, sys_version = "wardround", ""

        def do_GET(self) -> None:
            if self.path == "/healthz":
                why = unhealthy()
                self._send(200 if why is None else 503, "text/plain; charset=utf-8", f"{why or 'ok'}\n".encode())
            elif self.path == "/metrics":
                self._send(200, CONTENT_TYPE_LATEST, generate_latest(registry))
            else:
                self._send(404, "text/plain; charset=utf-8", b"/healthz or /metrics\n")

        def _send(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Scrapes are not worth a log line each."""

    return Handler
