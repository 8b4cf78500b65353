"""Stock Flower for comparison: a SuperLink and SuperNodes as processes, TLS, authenticated nodes, empty rounds.

The app that `flwr run` ships does nothing but send one message to every node and wait for the replies, round after
round; the time of each round is what its ServerApp measures. Everything else is Flower's default.
"""

import ipaddress
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import flwr
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

PATIENCE_S = 240.0
BIN = Path(flwr.__file__).parents[4] / "bin"  # of the environment that Flower is installed in

_SERVER_APP = """
import json, time
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()

@app.main()
def main(grid: Grid, context: Context) -> None:
    nodes = []
    while len(nodes) < {nodes}:
        nodes = list(grid.get_node_ids())
        time.sleep(0.2)
    times = []
    for round_ in range({rounds}):
        began = time.perf_counter()
        asked = [Message(RecordDict(), dst_node_id=n, message_type="train", group_id=str(round_)) for n in nodes]
        replies = list(grid.send_and_receive(asked))
        if len(replies) != {nodes} or any(reply.has_error() for reply in replies):
            raise RuntimeError("a node did not answer")
        times.append(time.perf_counter() - began)
    with open({out!r}, "w") as file:
        json.dump(times, file)
"""

_CLIENT_APP = """
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.train()
def train(message: Message, context: Context) -> Message:
    return Message(RecordDict(), reply_to=message)
"""

_PROJECT = """
[project]
name = "empty"
version = "1.0.0"
description = "Nothing"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "wardround"

[tool.flwr.app.components]
serverapp = "empty.server_app:app"
clientapp = "empty.client_app:app"
"""


def empty_rounds(folder: Path, *, nodes: int, rounds: int) -> tuple[float, ...]:
    """Return the seconds of each of `rounds` empty rounds with `nodes` SuperNodes.

    Raises:
        RuntimeError: Flower did not finish; its logs are in `folder`.
    """
    out = folder / "times.json"
    app = _write_app(folder, nodes=nodes, rounds=rounds, out=out)
    _certificates(folder)
    port = _free_port()
    (folder / "home").mkdir()
    (folder / "home" / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{port}"\n'
        f'root-certificates = "{folder / "ca.pem"}"\n'
    )
    with _processes(folder) as start:
        start(
            "superlink",
            *("--ssl-ca-certfile", folder / "ca.pem", "--ssl-certfile", folder / "tls.pem"),
            *("--ssl-keyfile", folder / "tls.key", "--enable-supernode-auth", "--database", folder / "state.db"),
            *("--host", "127.0.0.1", "--port", port, "--disable-runtime-dependency-installation"),
        )
        _wait_for_port(port)
        for number in range(nodes):
            _node_key(folder / f"node{number}")
            _flwr(folder, "supernode", "register", folder / f"node{number}.pub", "here")
            start(
                "supernode",
                *("--root-certificates", folder / "ca.pem", "--superlink", f"127.0.0.1:{port}"),
                *("--auth-supernode-private-key", folder / f"node{number}", "--port", _free_port()),
            )
        _flwr(folder, "run", app, "here")
        deadline = time.monotonic() + PATIENCE_S
        while not out.exists() or not out.stat().st_size:
            if time.monotonic() > deadline:
                raise RuntimeError(f"Flower did not finish {rounds} rounds in {PATIENCE_S:g} s; logs in {folder}")
            time.sleep(0.2)
        time.sleep(0.2)
        return tuple(json.loads(out.read_text()))


def _write_app(folder: Path, *, nodes: int, rounds: int, out: Path) -> Path:
    package = folder / "app" / "empty"
    package.mkdir(parents=True)
    (folder / "app" / "pyproject.toml").write_text(_PROJECT)
    (package / "__init__.py").touch()
    (package / "server_app.py").write_text(_SERVER_APP.format(nodes=nodes, rounds=rounds, out=str(out)))
    (package / "client_app.py").write_text(_CLIENT_APP)
    return folder / "app"


def _environment(folder: Path) -> dict[str, str]:
    return {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(folder),
        "FLWR_HOME": str(folder / "home"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }


@contextmanager
def _processes(folder: Path) -> Iterator["_Start"]:
    start = _Start(folder)
    try:
        yield start
    finally:
        start.stop()


class _Start:
    """Starts Flower's daemons, each in a process group of its own, with its log in the folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[subprocess.Popen[bytes]] = []

    def __call__(self, kind: str, *arguments: object) -> None:
        with (self._folder / f"{kind}{len(self._started)}.log").open("wb") as log:
            self._started.append(
                subprocess.Popen(
                    [str(BIN / f"flower-{kind}"), *map(str, arguments)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=_environment(self._folder),
                    start_new_session=True,
                )
            )

    def stop(self) -> None:
        for process in self._started:
            try:
                os.killpg(process.pid, 9)
            except ProcessLookupError:
                continue
            process.wait()


def _flwr(folder: Path, *arguments: object) -> None:
    done = subprocess.run(
        [str(BIN / "flwr"), *map(str, arguments)], env=_environment(folder), capture_output=True, text=True, timeout=120
    )
    if done.returncode:
        raise RuntimeError(f"flwr {arguments[0]}: {done.stdout}{done.stderr}")


def _certificates(folder: Path) -> None:
    """Make a certificate authority and one for 127.0.0.1."""
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name, name = _name("bench authority"), _name("127.0.0.1")
    now = datetime.now(UTC)

    def builder(subject: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(ca_name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
        )

    ca = builder(ca_name, ca_key.public_key()).add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")])
    leaf = builder(name, key.public_key()).add_extension(names, False)
    (folder / "ca.pem").write_bytes(ca.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    (folder / "tls.pem").write_bytes(leaf.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    (folder / "tls.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def _node_key(path: Path) -> None:
    """Make a SuperNode's key pair in OpenSSH's form."""
    key = ec.generate_private_key(ec.SECP384R1())
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    )
    path.chmod(0o600)
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    path.with_suffix(".pub").write_bytes(public)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise RuntimeError("the SuperLink does not listen") from None
            time.sleep(0.2)
