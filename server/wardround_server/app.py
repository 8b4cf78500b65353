"""The server daemon: opens the home, serves hospitals, runs every fully co-signed study.

Rules.
- One process owns the audit log. Whatever other commands cause waits in the outbox until this
  process has logged it; a study is offered and run only after its events are in the log.
- If the audit log cannot be written, everything stops (no audit, no round); the state on disk is
  complete, and the next start resumes.
- SIGTERM and SIGINT end it in good order: running rounds are left where they are.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from wardround_common import __version__
from wardround_common.audit.events import AuthFailed, ServerStarted, ServerStopped
from wardround_common.documents import sha256_digest
from wardround_common.errors import StorageError, WardroundError
from wardround_common.files import sync_folder, write_durably
from wardround_common.homeformat import stamp
from wardround_common.identity.address import Address
from wardround_common.logging import get_logger
from wardround_common.monitor import Monitor
from wardround_common.signing import Envelope
from wardround_common.study import Study
from wardround_common.wire.blobstore import FileBlobStore
from wardround_server import auditstamps, metrics
from wardround_server.auditdesk import AuditDesk, reviewer_identities
from wardround_server.auditlog import AuditLog
from wardround_server.auditpublisher import Publisher
from wardround_server.doctor import require_private_home
from wardround_server.ending import AbortNotices
from wardround_server.office import Office
from wardround_server.rounds.state import RoundState
from wardround_server.runner import StudyRunner, Surroundings
from wardround_server.status import StatusBoard
from wardround_server.studies import Proposal
from wardround_server.transport.grid import GrpcGrid
from wardround_server.transport.hub import Callbacks, Hub
from wardround_server.transport.serve import ServerThread
from wardround_server.transport.service import WardService
from wardround_server.transport.tls import server_credentials

TICK_S = 0.5
"""How soon a proposal, an invite or a co-signature made by another command is logged and acted on."""

RENEWAL_CHECK_S = 3_600.0
"""A certificate is renewed at least eight hours before its end (of one day's lifetime): an hour is often enough."""

MAX_REFUSALS = 256
"""Refused connections remembered between two ticks; a scanner must not fill the log or the memory."""

log = get_logger("server")


def serve_home(root: Path, stop: threading.Event, *, listening: Callable[[str], None] = lambda address: None) -> None:
    """Run the server in `root` until `stop` is set.

    Args:
        root: a server home.
        stop: set it to shut down.
        listening: told the address once hospitals can connect.

    Raises:
        ConfigError: not a usable home.
        TransportError: the port is taken.
        StorageError: the audit log or the state cannot be used; a later start resumes.
    """
    office = Office.open(root)
    require_private_home(office.home)
    stamp(root, "server")
    with AuditLog.open(
        office.home.audit, log_key=office.log_key, origin=office.origin, reviewers=office.reviewers, clock=time.time
    ) as audit:
        Daemon(office, audit, stop).run(listening)


class Daemon:
    """The running server. Use `serve_home`."""

    def __init__(self, office: Office, audit: AuditLog, stop: threading.Event) -> None:
        self._office = office
        self._audit = audit
        self._stop = stop
        self._refusals: OrderedDict[AuthFailed, None] = OrderedDict()
        self._hub = Hub(Callbacks(auth_failed=self._refused))
        self._blobs = FileBlobStore(office.home.blobs)
        self._board = StatusBoard(office.home.status, connected=self._hub.connected)
        self._around = Surroundings(
            office=office,
            audit=audit,
            blobs=self._blobs,
            state=RoundState(office.database),
            board=self._board,
            hold=lambda study: self._desk.unacknowledged(study),
        )
        self._notices = AbortNotices(hub=self._hub, endings=office.endings)
        self._runners: dict[str, StudyRunner] = {}
        self._publisher = Publisher(audit)
        self._damaged: frozenset[str] = frozenset()
        self._keys = office.keys
        self._next_renewal = 0.0

    def run(self, listening: Callable[[str], None]) -> None:
        """Serve until stopped (see `serve_home`)."""
        config = sha256_digest(self._office.home.config.read_bytes())
        self._audit.append([(ServerStarted(version=__version__, config=config), frozenset())])
        self._desk = _audit_desk(self._audit, self._office, config)
        self._desk.begin()
        with self._publisher, self._monitor(), self._server() as port:
            address = f"{(self._office.config.listen or self._office.config.address).rpartition(':')[0]}:{port}"
            log.info("listening", address=address, log=self._office.log)
            listening(address)
            try:
                while not self._stop.wait(TICK_S):
                    self._tick()
            finally:
                self._shut_down()

    def _monitor(self) -> AbstractContextManager[object]:
        office = self._office
        if office.config.monitor.port is None:
            return nullcontext()
        return Monitor(
            office.config.monitor.port,
            lambda: metrics.samples(office.home, lambda: self._keys, time.time),
            lambda: metrics.unhealthy(office.home),
        )

    def _server(self) -> ServerThread:
        office = self._office
        service = WardService(
            operator=office.operator(),
            registry=office.registry,
            studies=office.shelf,
            hub=self._hub,
            blobs=self._blobs,
            withdraw=office.endings.withdraw,
        )
        credentials = server_credentials(lambda: (self._keys.tls_key, self._keys.tls_certificate), office.trusted)
        return ServerThread(service, listen=office.config.listen or office.config.address, credentials=credentials)

    def _tick(self) -> None:
        self._publisher.check()
        self._desk.tick()
        self._log_waiting_events()
        stored = self._office.shelf.read()
        self._report_damaged({name: found for name, found in stored.items() if isinstance(found, WardroundError)})
        for proposal in stored.values():
            if isinstance(proposal, WardroundError):
                continue
            abort = self._office.endings.aborted(proposal.study.sha256())
            if abort is not None:
                self._end(proposal, abort)
            elif proposal.study.name not in self._runners:
                self._consider(proposal)
            else:
                self._limit(proposal)
        self._notices.collect()
        self._watch_runners()
        self._renew_certificate()
        self._board.refresh()

    def _renew_certificate(self) -> None:
        """Issue the server's certificate anew in good time; handshakes from now on get it, open streams stay."""
        if (now := time.monotonic()) < self._next_renewal:
            return
        self._next_renewal = now + RENEWAL_CHECK_S
        office, before = self._office, self._keys
        self._keys = before.renewed(
            office.home.keys,
            address=Address.parse(office.config.address),
            now=time.time(),
            days=office.config.certificate_days,
        )
        if self._keys is not before:
            log.info("the server's certificate was renewed while running")

    def _log_waiting_events(self) -> None:
        """Move the outbox, and refused connections, into the audit log: durable there, then removed here."""
        while queued := self._office.registry.take_events():
            self._audit.append([(item.event, item.concerns) for item in queued])
            self._office.registry.done([item.id for item in queued])
        refusals = [self._refusals.popitem(last=False)[0] for _ in range(len(self._refusals))]
        if refusals:
            self._audit.append([(event, frozenset()) for event in refusals])

    def _refused(self, event: AuthFailed) -> None:
        """Called from the network's thread: remember it, once for each certificate and reason."""
        if len(self._refusals) < MAX_REFUSALS:
            self._refusals[event] = None

    def _consider(self, proposal: Proposal) -> None:
        name = proposal.study.name
        if self._office.home.completed(name).exists():
            return
        if proposal.missing:
            self._board.waiting(f"study {name} waits for the signatures of {', '.join(proposal.missing)}")
        elif proposal.study.sha256() not in self._office.shelf.unlogged():
            log.info("study starts", study=name, digest=proposal.study.sha256())
            self._runners[name] = StudyRunner(proposal, self._grid(proposal.study), self._around)
            self._runners[name].start()

    def _report_damaged(self, damaged: dict[str, WardroundError]) -> None:
        """Say once for each study whose stored file was changed that nobody is offered it any more."""
        for name in damaged.keys() - self._damaged:
            log.error("a stored study does not verify and is offered to nobody", study=name, code=damaged[name].code)
        self._damaged = frozenset(damaged)

    def _end(self, proposal: Proposal, abort: Envelope) -> None:
        """Stop an aborted study where it is, and tell its members."""
        runner = self._runners.get(proposal.study.name)
        if runner is not None and not runner.halt.is_set():
            log.warning("study aborted", study=proposal.study.name)
            runner.halt.set()
            self._board.aborted(proposal.study.name, proposal.study.privacy.rounds)
        if runner is None or not runner.is_alive():
            self._destroy_update_key(proposal.study.name)
        self._notices.offer(proposal, abort)

    def _limit(self, proposal: Proposal) -> None:
        """Abort a running study that is out of time, or that too many hospitals have left."""
        study, runner = proposal.study, self._runners[proposal.study.name]
        reason = None if runner.completed else self._office.endings.due(study)
        if reason is not None:
            log.warning("the server aborts a study", study=study.name, reason=reason)
            self._office.endings.abort(study, reason)

    def _grid(self, study: Study) -> GrpcGrid:
        members = {member.name: member.identity for member in study.cohort.members}
        return GrpcGrid(self._hub, study=study.sha256(), members=members)

    def _watch_runners(self) -> None:
        self._mark_completed()
        for runner in self._runners.values():
            if isinstance(runner.error, StorageError):
                raise runner.error  # no audit, no round: the operator must see it now

    def _mark_completed(self) -> None:
        for name, runner in self._runners.items():
            if runner.completed and not self._office.home.completed(name).exists():
                self._destroy_update_key(name)
                write_durably(self._office.home.completed(name), b"")

    def _destroy_update_key(self, name: str) -> None:
        """Nothing that was ever sealed for an ended study can be opened afterwards."""
        key = self._office.home.update_key(name)
        if key.exists():
            key.unlink()
            sync_folder(key.parent)

    def _shut_down(self) -> None:
        self._stop.set()
        for runner in self._runners.values():
            runner.halt.set()
        self._hub.close()
        for runner in self._runners.values():
            runner.join()
        self._mark_completed()
        self._board.stopped()
        self._audit.append([(ServerStopped(), frozenset())])
        log.info("stopped")


def _audit_desk(audit: AuditLog, office: Office, config: str) -> AuditDesk:
    url = office.config.timestamp_url
    return AuditDesk(
        audit,
        office.home.root,
        config=config,
        reviewers=dict(office.config.reviewers),
        identities=lambda: reviewer_identities(proposal.study for proposal in office.shelf.all()),
        concerned=lambda: frozenset(office.registry.members()),
        timestamps=auditstamps.post_to(url) if url else None,
    )
