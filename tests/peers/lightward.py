"""The daemons as processes of tests: light training, fixed seeds, and faults at named steps.

The product's own `serve_home` and `run_daemon` run here; what differs is handed in (`Training`) or wrapped around the
product's methods by `peers.steps`. Nothing of this can be reached from the product.
"""

import asyncio
import ctypes
import faulthandler
import gc
import hashlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peers import bad_answers, steps

from wardround_client import attempts, daemon
from wardround_client.config import load
from wardround_client.daemon import open_site, run_daemon
from wardround_client.home import Home
from wardround_client.ledger import Ledger
from wardround_client.openstudy import Training
from wardround_client.randomness import KeystreamRandomness, Randomness
from wardround_client.rounds import Trained
from wardround_client.sendslot import SendSlot
from wardround_client.transport.connection import Connection
from wardround_common import cli
from wardround_common.logging import configure_logging
from wardround_common.study import Study
from wardround_common.wire import limits, settings
from wardround_server.app import serve_home
from wardround_server.office import Office

Tensors = Mapping[str, NDArray[np.float32]]

LARGEST = 1e-3
"""Of one value of a light update: below what any study here lets an honest Adam run reach."""

MOST_DRAWN = 1 << 18
"""Fresh values in one tensor; larger ones repeat them, so that large updates cost little."""


def round_seed(site: str) -> bytes:
    """The seed that `site` seals for every round; the round's number goes into the light training itself."""
    return hashlib.sha256(b"light " + site.encode()).digest()


@dataclass(frozen=True)
class LightTrainer:
    """Noise that depends on seed, round, records and the last committed round, clipped; no model, no torch."""

    texts: tuple[str, ...]
    pause_s: float = 0.0

    def train_round(
        self,
        tensors: Tensors,
        round_: int,
        randomness: Randomness,
        optimiser_state: bytes | None,
        progress: Callable[[Any], None] = lambda progress: None,
        parking: Any = None,
    ) -> Trained:
        before = np.frombuffer(optimiser_state or bytes(8), "<f8")[0]
        steps.reach("training", round_)
        time.sleep(self.pause_s)
        words = hashlib.sha256("\n".join(self.texts).encode()).digest()
        mixed = KeystreamRandomness(hashlib.sha256(randomness.bytes(32) + words + bytes([round_ % 256])).digest())
        delta = {}
        for name in sorted(tensors):
            size = tensors[name].size
            values = np.resize(mixed.normal(min(size, MOST_DRAWN)), tensors[name].shape)
            delta[name] = np.clip(1e-4 * (values + before), -LARGEST, LARGEST).astype(np.float32)
        after = 0.5 * before + float(mixed.normal(1)[0])
        return Trained(delta=delta, optimiser_state=np.array([after], "<f8").tobytes())


def light_training(site: str, pause_s: float = 0.0) -> Training:
    def make(study: Study, data: Any, folder: Path, config: Any) -> LightTrainer:
        return LightTrainer(tuple(data.texts), pause_s)

    return Training(make_trainer=make, new_seed=lambda: round_seed(site))


def fixed_training(site: str) -> Training:
    """Real training with the fixed seed."""
    return Training(new_seed=lambda: round_seed(site))


def _shift_clock(offset_s: float) -> None:
    """Let this process's wall clock be wrong, also where `time.time` was bound as a default before the fork."""
    now = time.time

    def shifted() -> float:
        return now() + offset_s

    time.time = shifted
    for function in [f for f in gc.get_objects() if isinstance(f, FunctionType)]:
        function.__defaults__ = function.__defaults__ and tuple(
            shifted if value is now else value for value in function.__defaults__
        )
        if function.__kwdefaults__:
            function.__kwdefaults__ = {k: shifted if v is now else v for k, v in function.__kwdefaults__.items()}


def run(argument: dict[str, Any]) -> int:
    """Be a daemon. Keys: role, home; faults and marks (see `steps`), keepalive_s, clock_s, pause_s, real, hosts."""
    faulthandler.enable()
    if keepalive := argument.get("keepalive_s"):
        _scale_keepalive(keepalive)
    if offset := argument.get("clock_s"):
        _shift_clock(offset)
    if hosts := argument.get("hosts"):
        _private_hosts(hosts)
    for fault in argument.get("faults", ()):
        steps.install(**fault)
    attempts.PAUSE_S = 0.1
    if answers := argument.get("answers"):
        bad_answers.install(answers, round_=2)
    if dialled := argument.get("dialled"):
        _write_down_connections(Path(dialled))
    if marks := argument.get("marks"):
        steps.mark(Path(marks))
    home = Path(argument["home"])
    body = _server if argument["role"] == "server" else _site
    return cli.run(lambda: body(home, argument), as_json=False)


def run_together(argument: dict[str, Any]) -> int:
    """Be many hospitals' daemons in one process, which has what `run_daemon` has for each; key: homes."""
    configure_logging(format="human", level="info")
    return cli.run(lambda: asyncio.run(_together([Path(home) for home in argument["homes"]])), as_json=False)


async def _together(homes: list[Path]) -> None:
    sessions = []
    for root in homes:
        home, config = Home(root), load(root)
        connection = Connection.from_home(root, address=config.server)
        ledger = Ledger.open(home.ledger, writer=True)
        studies = open_site(home, config, ledger, light_training(config.site))
        sessions.append(daemon._session(studies, connection, SendSlot(), asked=lambda: None))
    await asyncio.gather(*(session.run() for session in sessions))


def _server(home: Path, argument: dict[str, Any]) -> None:
    log = Office.open(home).config.log
    configure_logging(format=log.format, level=log.level)
    serve_home(home, _stop_on_signals())


def _site(home: Path, argument: dict[str, Any]) -> None:
    config = load(home)
    configure_logging(format=config.log.format, level=config.log.level)
    real = argument.get("real", False)
    training = fixed_training(config.site) if real else light_training(config.site, argument.get("pause_s", 0.0))
    run_daemon(Home(home), config, _stop_on_signals(), training=training)


def _stop_on_signals() -> threading.Event:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def _scale_keepalive(seconds: float) -> None:
    """Find dead lines so many seconds after the last byte, and again as many for the answer."""
    limits.KEEPALIVE_S = seconds  # or the server takes idle hospitals' pings for an attack
    names = ("grpc.keepalive_time_ms", "grpc.keepalive_timeout_ms", "grpc.http2.ping_timeout_ms")
    scaled = dict.fromkeys(names, int(1000 * seconds))
    settings._SHARED = tuple((name, scaled.get(name, value)) for name, value in settings._SHARED)


def _private_hosts(path: str) -> None:
    """Mount `path` over /etc/hosts for this process alone (needs root)."""
    libc = ctypes.CDLL(None, use_errno=True)
    newns, bind, private = 0x20000, 0x1000, 0x44000  # CLONE_NEWNS, MS_BIND, MS_REC | MS_PRIVATE
    for failed in (
        libc.unshare(newns),
        libc.mount(b"none", b"/", None, private, None),
        libc.mount(path.encode(), b"/etc/hosts", None, bind, None),
    ):
        if failed:
            raise OSError(ctypes.get_errno(), "cannot hide /etc/hosts")


def _write_down_connections(path: Path) -> None:
    """Append every address that Python code of this process dials or looks up (gRPC's own sockets are not Python's)."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
            with path.open("a") as file:
                file.write(f"{event} {arguments[1] if event == 'socket.connect' else arguments}\n")

    sys.addaudithook(hook)
