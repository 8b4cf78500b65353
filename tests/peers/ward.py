"""A real server on loopback and enrolled homes, for transport tests: everything but the network is in one process."""

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from wardround_client.enrolment import Enrolled, enrol
from wardround_client.transport.backoff import Backoff
from wardround_client.transport.calls import Calls
from wardround_client.transport.connection import Connection
from wardround_client.transport.session import Session, SessionState
from wardround_common.errors import ConfigError
from wardround_common.identity.address import Address
from wardround_common.wire.blobstore import FileBlobStore
from wardround_server.database import Database
from wardround_server.enrolment import Registry
from wardround_server.keys import ServerKeys
from wardround_server.transport.hub import Callbacks, Hub
from wardround_server.transport.serve import ServerThread
from wardround_server.transport.service import WardService
from wardround_server.transport.tls import server_credentials

LOG_KEY = "wardround.example+0123abcd+AQ=="
STUDY = "sha256:" + "a" * 64
OTHER_STUDY = "sha256:" + "b" * 64


@dataclass
class Studies:
    """In-memory study desk; every site is in every study of `envelopes`."""

    envelopes: dict = field(default_factory=dict)

    def list_for(self, site):
        return sorted(self.envelopes)

    def envelope_for(self, site, reference):
        if reference not in self.envelopes:
            raise ConfigError("study-unknown", f"no study called {reference}", next_step="-")
        return self.envelopes[reference]

    def cosign(self, site, envelope):
        return envelope + b" signed by " + site.encode()


class Ward:
    """Server home, registry, hub and blob store; start and stop the server as often as needed."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time, listen: str = "127.0.0.1"):
        self.folder = folder
        self.listen = listen
        (folder / "keys").mkdir(parents=True)
        self.address = Address(host="127.0.0.1", port=0)
        self.keys = ServerKeys.create(folder / "keys", name="operator", address=self.address, now=time.time(), days=30)
        self.database = Database.open(folder / "server.db")
        self.registry = Registry(self.database, clock=clock)
        self.refusals = []
        self.connections = []
        self.came = threading.Condition()
        self.hub = self.new_hub()
        self.blobs = FileBlobStore(folder / "blobs", spare_bytes=0)
        self.studies = Studies()
        self.thread: ServerThread | None = None

    def new_hub(self):
        return Hub(
            Callbacks(
                connected=lambda site, studies: self._note((site, "up")),
                disconnected=lambda site: self._note((site, "down")),
                auth_failed=self.refusals.append,
            )
        )

    def _note(self, what):
        with self.came:
            self.connections.append(what)
            self.came.notify_all()

    def wait_for(self, *what):
        """Wait until every (site, "up"|"down") of `what` was seen, in any order, as often as listed."""
        with self.came:
            assert self.came.wait_for(lambda: all(self.connections.count(w) >= what.count(w) for w in what), 10), (
                f"saw only {self.connections}"
            )

    @property
    def operator(self):
        return self.keys.operator(name="operator", address=self.address, log=LOG_KEY, certificate_days=30)

    def start(self, service_class=WardService):
        service = service_class(
            operator=self.operator,
            registry=self.registry,
            studies=self.studies,
            hub=self.hub,
            blobs=self.blobs,
            withdraw=lambda site, data: data + b" left by " + site.encode(),
        )
        credentials = server_credentials(
            lambda: (self.keys.tls_key, self.keys.tls_certificate), self.keys.authority.pem
        )
        self.thread = ServerThread(
            service, listen=f"{self.listen}:{self.address.port}", credentials=credentials, grace_s=0.5
        )
        self.address = self.address.with_port(self.thread.start())
        return self

    def stop(self):
        if self.thread is not None:
            self.thread.stop()
            self.thread = None

    def invite_file(self, site: str, path: Path, hours: float = 1) -> Path:
        self.registry.invite(self.operator, site, hours=hours).write(path)
        return path

    def enrol(self, site: str) -> "Site":
        home = self.folder / f"home-{site}"
        invite = self.invite_file(site, self.folder / f"{site}-{time.monotonic_ns()}.invite")
        enrolled = enrol(invite, home, approver_key=self.folder / f"{site}-approver.key")
        return Site(ward=self, home=home, enrolled=enrolled)


@dataclass
class Site:
    """An enrolled hospital."""

    ward: Ward
    home: Path
    enrolled: Enrolled

    @property
    def name(self):
        return self.enrolled.site

    @property
    def connection(self) -> Connection:
        return Connection.from_home(self.home, address=str(self.ward.address))

    @property
    def blobs(self) -> FileBlobStore:
        return FileBlobStore(self.home / "blobs", spare_bytes=0)

    def calls(self, **options) -> Calls:
        return Calls(self.connection, **options)

    def session(self, handle, **options) -> Session:
        states: list[SessionState] = []
        options.setdefault("backoff", Backoff(jitter=lambda: 0.0))
        session = Session(
            self.connection,
            handle,
            identity=self.enrolled.identity,
            blobs=self.blobs,
            on_state=states.append,
            **options,
        )
        session.states = states
        return session


class RunningSessions:
    """Sessions in one event loop in a thread, as hospitals' daemons would run them in theirs."""

    def __init__(self, sessions):
        self.sessions = sessions
        self.errors = {}
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True)

    async def _main(self):
        results = await asyncio.gather(*(session.run() for session in self.sessions), return_exceptions=True)
        self.errors = {i: result for i, result in enumerate(results) if result is not None}

    def start(self):
        self._thread.start()
        return self

    def stop(self):
        for session in self.sessions:
            session.stop()
        return self.join()

    def join(self, timeout=10):
        self._thread.join(timeout)
        assert not self._thread.is_alive(), "a session did not stop"
        return self.errors


@contextmanager
def running(*sessions):
    """Run sessions inside the block, then stop them; an error that one of them ends with is raised."""
    threads = RunningSessions(sessions).start()
    try:
        yield threads
    finally:
        errors = threads.stop()
    for error in errors.values():
        raise error
