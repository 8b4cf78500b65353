"""Bad lines between hospitals and server: the study goes on by itself, with the same result.

Times are scaled: keep-alive pings every half second instead of every 8 s, a partition of seconds instead of minutes.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from peers.faultline import Faultline
from peers.light import Light, Workshop

KEEPALIVE_S = 0.5
LARGE = {"rank": 256}  # an update of about 1 MB: several chunks


def quick_keepalive(light: Light) -> None:
    for name in ("server", *light.sites):
        light.options.setdefault(name, {})["keepalive_s"] = KEEPALIVE_S


def complete(light: Light) -> None:
    light.start()
    light.finish()
    light.judge()
    assert set(map(len, light.survivors().values())) == {len(light.sites)}


def test_an_upload_that_is_cut_resumes_where_it_was(shop: Workshop):
    with shop.light(3, **LARGE) as light, Faultline(light.fed.address) as line:
        light.through("south", server=line.address)
        line.cut_after = 900_000
        line.bytes_per_s = 2e6  # so that the first chunk is stored when the line breaks
        complete(light)
    size = 2 * 512 * 256 * 4  # what one whole update has at least
    assert line.cut_after is None, "nothing was cut"
    assert sum(line.carried) < 3 * size + size // 2, "the upload began anew"


@pytest.mark.slow
def test_300_ms_of_latency(shop: Workshop):
    with shop.light(3, rounds=1) as light, Faultline(light.fed.address) as line:
        line.latency_s = 0.15  # each way
        for site in light.sites:
            light.through(site, server=line.address)
        complete(light)


@pytest.mark.slow
def test_a_site_behind_1_mbit_per_second(shop: Workshop):
    with shop.light(3, rank=64, rounds=1) as light, Faultline(light.fed.address) as line:
        line.bytes_per_s = 1e6 / 8
        light.through("south", server=line.address)
        complete(light)


@pytest.mark.slow
def test_a_proxy_that_drops_idle_connections(shop: Workshop):
    """Training is silent for longer than the proxy waits, and the pings are too rare for it."""
    with shop.light(3) as light, Faultline() as line:
        line.idle_s = 0.3
        light.options["south"] = {"pause_s": 1.0}
        light.through("south", proxy=line.url)
        complete(light)
    assert len(line.tunnels) > 6, "no connection was dropped"
    assert set(line.tunnels) == {light.fed.address}


@pytest.mark.slow
def test_a_proxy_that_cannot_resolve_the_server_for_a_while(shop: Workshop):
    with shop.light(3) as light, Faultline() as line:
        line.names_known = False
        light.through("south", proxy=line.url)
        light.start()
        light.fed.wait(lambda: "not reachable" in light.fed.status("south").get("message", ""), "it to say so")
        line.names_known = True
        complete(light)


@pytest.mark.slow
def test_a_half_open_connection_is_given_up_and_dialled_anew(shop: Workshop):
    """The line swallows everything and never says so: both sides find out by their pings."""
    with shop.light(3) as light, Faultline(light.fed.address) as line:
        quick_keepalive(light)
        light.through("south", server=line.address)
        light.fault("south", "in training", do="stall", seconds=3.0)
        light.start()
        light.fed.wait(lambda: light.fed.status("south").get("phase") == "training"
                       and light.fed.status("south")["round"] == 2, "round 2")  # fmt: skip
        line.break_half_open()
        complete(light)
    assert len(line.tunnels) > 1


@pytest.mark.slow
def test_a_partition_of_every_hospital(shop: Workshop):
    with shop.light(3) as light, Faultline(light.fed.address) as line:
        quick_keepalive(light)
        for site in light.sites:
            light.through(site, server=line.address)
        light.fault("server", "after the first answer arrived", do="stall", seconds=1.0)
        light.start()
        light.fed.wait(lambda: light.fed.status().get("round", 0) == 2, "round 2")
        line.freeze()
        time.sleep(6)
        assert not (light.fed.server / "studies" / "tiny" / "completed").exists()
        line.thaw()
        complete(light)


@pytest.mark.slow
def test_lines_that_are_cut_all_the_time(shop: Workshop):
    with shop.light(3, **LARGE) as light, Faultline(light.fed.address) as line:
        for site in light.sites:
            light.through(site, server=line.address)
        light.start()
        for _ in range(12):
            time.sleep(0.4)
            line.cut()
        complete(light)


def _private_mounts() -> bool:
    """Whether this process may have a mount namespace of its own; asked in a child."""
    return os.geteuid() == 0 and subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("unshare") or not _private_mounts(), reason="needs root and mount namespaces")
def test_a_name_that_does_not_resolve_for_a_while(shop: Workshop, tmp_path: Path):
    """The hospital's own resolver does not know its proxy's name, until somebody mends /etc/hosts."""
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n")
    with shop.light(3) as light, Faultline() as line:
        light.through("south", proxy=f"http://proxy.ward.test:{line.port}")
        light.options["south"] = {"hosts": str(hosts)}
        light.start()
        light.fed.wait(lambda: "not reachable" in light.fed.status("south").get("message", ""), "it to say so")
        with hosts.open("a") as file:  # in place: the mount is of this file
            file.write("127.0.0.1 proxy.ward.test\n")
        complete(light)
    assert line.tunnels


def _own_network() -> bool:
    lossy = (
        "table inet f {\n chain in {\n type filter hook input priority 0;\n numgen random mod 100 < 30 drop\n }\n}\n"
    )
    if os.geteuid() != 0 or not shutil.which("nft") or not shutil.which("unshare"):
        return False
    return (
        subprocess.run(["unshare", "-n", "nft", "-f", "-"], input=lossy, text=True, capture_output=True).returncode == 0
    )


@pytest.mark.slow
@pytest.mark.skipif(not _own_network(), reason="needs root, network namespaces and nftables with numgen")
def test_30_percent_of_packets_lost(tmp_path: Path):
    """In a network namespace of its own, in which nearly every third packet of every connection vanishes."""
    done = subprocess.run(
        ["unshare", "-n", sys.executable, "-m", "peers.lossy", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[-1]) > 50, f"too few packets were lost: {done.stdout}"
