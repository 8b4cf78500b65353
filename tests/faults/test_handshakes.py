"""Many hospitals that connect at once do not end the server."""

import threading

import pytest
from peers.light import Workshop

from wardround_client.transport.calls import Calls
from wardround_client.transport.connection import Connection

CALLS = 1_000
"""For each of three threads. Given a new configuration at every handshake, gRPC died after 800 to 4,000 of them."""


@pytest.mark.slow
def test_thousands_of_handshakes_at_once(shop: Workshop):
    with shop.light(3, waiting=True) as light:
        light.fed.start("server")
        failed: list[Exception] = []

        def hammer(site: str) -> None:
            connection = Connection.from_home(light.fed.home(site), address=light.fed.address)
            for _ in range(CALLS):
                try:
                    with Calls(connection) as calls:
                        calls.list_studies()
                except Exception as error:
                    failed.append(error)
                    return

        threads = [threading.Thread(target=hammer, args=(site,)) for site in light.sites]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert light.fed.processes["server"].poll() is None, light.fed.log_of("server")[-2000:]
        assert failed == []
