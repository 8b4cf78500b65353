"""A hospital's whole study behind a proxy that opens TLS: only what docs/spec lists leaves, and no canary does."""

import base64
import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from peers.light import Light, Workshop, workshop
from peers.opener import Opener

CANARY = "CANARY-7f3e-Mildred-Quux"
LABEL = "heart"
ANSWERS = {"wardround/round-answer/1", "wardround/cosignature/1", "wardround/stale-offer/1", "wardround/fresh-wanted/1"}
"""Documents that a hospital may send in a study protected by HPKE, where nothing goes wrong."""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    with workshop(tmp_path_factory.mktemp("egress")) as made:
        yield made


def opened(light: Light) -> Opener:
    server, site = light.fed.server / "keys", light.fed.home("south") / "keys"
    return Opener(
        light.fed.address,
        server=(server / "server.pem", server / "server.key"),
        authority=server / "ca.pem",
        site=(site / "transport.pem", site / "transport.key"),
    )


def plant(light: Light, records: int) -> None:
    """Put canaries into notes, the file's name, another column's name and the number of records."""
    home = light.fed.home("south")
    folder = home / f"notes-{CANARY}"
    folder.mkdir()
    lines = [f"text,label,{CANARY}-column", *(f"{CANARY} rhythm {i},{LABEL},{i}" for i in range(records))]
    (folder / f"{CANARY}.csv").write_text("\n".join(lines) + "\n")
    light.fed.configure("south", folder / f"{CANARY}.csv")


def run(shop: Workshop, records: int, **fault: Any) -> tuple[Opener, set[str], str]:
    """Run a study with south behind the opened line; return it, whom south was connected to, and what it dialled."""
    with shop.light(5 if fault else 3) as light:
        plant(light, records)
        remotes: set[str] = set()
        dialled = light.fed.folder / "dialled"
        light.options["south"] = {"dialled": str(dialled)}
        if fault:
            light.fault("south", **fault)
        with opened(light) as opener:
            light.through("south", server=f"127.0.0.1:{opener.port}")
            light.start()
            done = threading.Event()
            watch = threading.Thread(target=_watch, args=(light.fed.processes["south"].pid, remotes, done))
            watch.start()
            light.finish()
            done.set()
            watch.join()
        shutil.rmtree(light.fed.home("south") / f"notes-{CANARY}")
        return opener, remotes, dialled.read_text() if dialled.exists() else ""


def _watch(pid: int, remotes: set[str], done: threading.Event) -> None:
    """Collect the remote ends of the process's TCP connections until it ends."""
    while not done.is_set():
        try:
            inodes = {link.readlink().name for link in Path(f"/proc/{pid}/fd").iterdir()}
            for name in ("tcp", "tcp6", "udp", "udp6"):
                for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
                    fields = line.split()
                    if f"socket:[{fields[9]}]" in inodes and not fields[2].endswith(":0000"):
                        remotes.add(f"{name} {fields[2]}")
        except OSError:
            time.sleep(0)
        time.sleep(0.01)


def everything(opener: Opener) -> bytes:
    """What was sent, as it is and with every run of base64 in it opened, twice."""
    found = [opener.raw(), *opener.messages()]
    for _ in range(2):
        runs = [run for data in found for run in re.findall(rb"[A-Za-z0-9+/_-]{16,}={0,2}", data)]
        found += [base64.b64decode(run[: len(run) // 4 * 4], altchars=b"-_", validate=False) for run in runs]
    return b"\n".join(found)


def documents(opener: Opener) -> list[dict[str, Any]]:
    return [json.loads(f.answer.document) for f in opener.frames() if f.WhichOneof("body") == "answer"]


def sizes(opener: Opener) -> list[int]:
    """How large each message was; how transfers were cut into messages is the same too."""
    return sorted(len(message) for message in opener.messages())


def shape(value: Any) -> Any:
    """The value without what noise decides: digests, signatures, sizes."""
    if isinstance(value, dict):
        opened = {k: shape(v) for k, v in value.items()}
        if "payload" in value:
            opened["payload"] = shape(json.loads(base64.b64decode(value["payload"] + "==")))
        return opened
    if isinstance(value, list):
        return [shape(item) for item in value]
    if isinstance(value, str) and (value.startswith("sha256:") or len(value) > 40):
        return "…"
    return value


def test_only_listed_things_leave_and_no_canary_does(shop: Workshop):
    opener, remotes, dialled = run(shop, records=61)
    sent = everything(opener)
    assert len(opener.raw()) > 10_000, "the line was not used"
    for canary in (CANARY, "Mildred", "rhythm", f"{CANARY}-column", ".csv", "homes", "/tmp"):
        assert canary.encode() not in sent, f"{canary} left the hospital"
    kinds = {frame.WhichOneof("body") for frame in opener.frames()}
    assert kinds <= {"hello", "answer", "goodbye"}
    made = documents(opener)
    assert {document["format"] for document in made} <= ANSWERS
    assert sum(document["format"] == "wardround/round-answer/1" for document in made) == 3
    assert re.search(rb"\b61\b", b"".join(json.dumps(shape(d)).encode() for d in made)) is None, "a count left"
    port = f":{opener.port:04X}"
    assert remotes, "no connection was seen"
    assert {remote for remote in remotes if not remote.endswith(port)} == set(), "it connected to somebody else"
    assert dialled == "", "Python code of the daemon dialled by itself"


@pytest.mark.slow
def test_neighbouring_data_cannot_be_told_apart(shop: Workshop):
    """One record more: the same documents with the same fields, values and sizes; only noise and timing differ."""
    one, two = (run(shop, records=records)[0] for records in (60, 61))
    assert [shape(d) for d in documents(one)] == [shape(d) for d in documents(two)]
    assert sizes(one) == sizes(two)


@pytest.mark.slow
def test_a_failure_is_one_generic_word(shop: Workshop):
    """Whatever fails inside: the same document, with nothing of the reason."""
    opener, _, _ = run(shop, records=60, step="in training", do="out-of-memory", times=100)
    failed = [document for document in documents(opener) if document["format"] == "wardround/refused/1"]
    assert failed == [{"format": "wardround/refused/1", "code": "failed-locally"}]
    assert CANARY.encode() not in everything(opener)
