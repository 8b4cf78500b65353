"""Keep-alive pings of an idle hospital are welcome: gRPC's default would end its session after the third."""

import time

import pytest
from peers.ward import Ward, running

from wardround_common.wire import limits, settings


@pytest.mark.slow
def test_an_idle_session_outlives_many_pings(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "KEEPALIVE_S", 1.0)
    scaled = {"grpc.keepalive_time_ms": 1_000, "grpc.keepalive_timeout_ms": 5_000}
    monkeypatch.setattr(settings, "_SHARED", tuple((name, scaled.get(name, v)) for name, v in settings._SHARED))
    ward = Ward(tmp_path).start()
    site = ward.enrol("north")
    with running(site.session(lambda message: message)):
        ward.wait_for(("north", "up"))
        time.sleep(8)  # eight pings
        assert ward.connections == [("north", "up")]
    ward.stop()
