"""Health and metrics: on loopback only, nothing but what was handed in, and bounded."""

import http.client
import socket
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from wardround_client import metrics as client_metrics
from wardround_client.home import Home as ClientHome
from wardround_client.status import StatusBoard as ClientBoard
from wardround_common.errors import ConfigError
from wardround_common.identity.address import Address
from wardround_common.monitor import ADDRESS, Monitor, Sample
from wardround_server import metrics as server_metrics
from wardround_server.home import Home as ServerHome
from wardround_server.keys import ServerKeys
from wardround_server.rounds.desk import StudyStatus
from wardround_server.status import StatusBoard as ServerBoard


def get(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(ADDRESS, port, timeout=10)
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, body


def values(text: str) -> dict[tuple[str, tuple[str, ...]], float]:
    families = text_string_to_metric_families(text)
    return {(s.name, tuple(s.labels.values())): s.value for family in families for s in family.samples}


def test_metrics_are_what_was_handed_in_at_that_moment() -> None:
    step = [1.0]
    samples = lambda: [  # noqa: E731
        Sample(name="step", help="h", value=step[0]),
        Sample(name="up", help="h", value=1, labels={"site": "north"}),
        Sample(name="up", help="h", value=0, labels={"site": 'sou"th'}),
    ]
    with Monitor(0, samples, lambda: None) as monitor:
        assert values(get(monitor.port, "/metrics")[1]) == {
            ("wardround_step", ()): 1,
            ("wardround_up", ("north",)): 1,
            ("wardround_up", ('sou"th',)): 0,
        }
        step[0] = 2.0
        assert values(get(monitor.port, "/metrics")[1])["wardround_step", ()] == 2


def test_health_follows_the_daemon() -> None:
    why: list[str | None] = [None]
    with Monitor(0, list, lambda: why[0]) as monitor:
        assert get(monitor.port, "/healthz") == (200, "ok\n")
        why[0] = "failed"
        assert get(monitor.port, "/healthz") == (503, "failed\n")
        assert get(monitor.port, "/")[0] == 404


def test_it_listens_on_loopback_only() -> None:
    with Monitor(0, list, lambda: None) as monitor:
        assert monitor._server.server_address[0] == "127.0.0.1"
        others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
        for address in others - {"127.0.0.1", "127.0.1.1"}:
            with pytest.raises(OSError, match=r"refused|timed out|unreachable"):
                socket.create_connection((str(address), monitor.port), timeout=2)


def test_a_port_that_is_taken() -> None:
    with Monitor(0, list, lambda: None) as monitor, pytest.raises(ConfigError) as caught:
        Monitor(monitor.port, list, lambda: None)
    assert caught.value.code == "monitor-port"


def test_a_hospitals_metrics(tmp_path: Path) -> None:
    home = ClientHome(tmp_path)
    board = ClientBoard(home.status, clock=lambda: 100.0)
    board.show(phase="training", study="demo", round=3, rounds=20, step=4, steps=6, epsilon_spent=1.5)
    found = {(s.name, tuple(s.labels.values())): s.value for s in client_metrics.samples(home, lambda: 160.0)}
    assert found["client_phase", ("training",)] == 1
    assert found["client_phase", ("paused",)] == 0
    assert (found["client_round", ()], found["client_step", ()]) == (3, 4)
    assert found["client_epsilon_spent", ("demo",)] == 1.5
    assert found["client_status_age_seconds", ()] == 60
    assert client_metrics.unhealthy(home) is None
    board.show(phase="failed", message="x")
    assert client_metrics.unhealthy(home) == "failed"


def test_the_servers_metrics(tmp_path: Path) -> None:
    home = ServerHome(tmp_path)
    home.status.parent.mkdir()
    keys = ServerKeys.create(tmp_path, name="op", address=Address(host="x.example.org", port=1), now=0.0, days=30)
    board = ServerBoard(home.status, connected=lambda: frozenset({"north"}))
    board.study(
        StudyStatus(phase="running", study="demo", round=2, rounds=9, sites={"north": "working", "south": "working"})
    )
    found = {
        (s.name, tuple(s.labels.values())): s.value for s in server_metrics.samples(home, lambda: keys, lambda: 0.0)
    }
    assert found["server_phase", ("running",)] == 1
    assert (found["server_round", ()], found["server_rounds", ()]) == (2, 9)
    assert (found["server_member_connected", ("north",)], found["server_member_connected", ("south",)]) == (1, 0)
    assert found["server_certificate_seconds_left", ("server",)] == 30 * 86_400
    assert server_metrics.unhealthy(home) is None
