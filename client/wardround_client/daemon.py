"""The hospital's daemon: wires policy, ledger, vault, training and transport together.

Rules.
- All randomness of the guarantee comes from the operating system (`randomness.new_round_seed`); no
  configuration, flag or environment variable can replace it.
- The shell imports no torch; an approved study loads it, and stays resident, before the first round.
- A server that cannot be reached is waited for, for ever; a second daemon on one home is refused.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext

from flwr.app import Context, Message, RecordDict

from wardround_client import metrics
from wardround_client.app import client_app
from wardround_client.caretaker import Caretaker
from wardround_client.config import ClientConfig
from wardround_client.ending import is_ended, send_withdrawals, waiting_withdrawals
from wardround_client.gate import Gate
from wardround_client.home import Home
from wardround_client.ledger import Ledger
from wardround_client.openstudy import Training
from wardround_client.policies import load_policy
from wardround_client.presence import require_running
from wardround_client.private_files import require_private_home
from wardround_client.renewal import renew_if_due
from wardround_client.sendslot import SendSlot
from wardround_client.status import StatusBoard
from wardround_client.studies import SiteStudies
from wardround_client.transport.calls import Calls
from wardround_client.transport.connection import Connection
from wardround_client.transport.session import Session, SessionState
from wardround_client.vault import Vault
from wardround_common.errors import TransportError, WardroundError
from wardround_common.homeformat import stamp
from wardround_common.identity.keys import load_identity_key, load_public_key
from wardround_common.logging import get_logger
from wardround_common.monitor import Monitor
from wardround_common.wire.blobstore import FileBlobStore

log = get_logger("client")


def run_daemon(home: Home, config: ClientConfig, stop: threading.Event, *, training: Training | None = None) -> None:
    """Run this hospital's daemon until `stop` is set.

    Args:
        home: this site's files.
        config: its `client.toml`.
        stop: set it to shut down.
        training: the real one, unless a test that wires the daemon itself hands in another.

    Raises:
        ConfigError: not an enrolled home, or a file in it is unusable.
        EnrolmentError: the certificate was revoked or has expired.
        StorageError: another daemon runs on this home, or the state is unusable.
    """
    require_running(home)
    require_private_home(home)
    stamp(home.root, "client")
    renew_at_start(home, config)
    connection = Connection.from_home(home.root, address=config.server, proxy=config.proxy)
    with closing(Ledger.open(home.ledger, writer=True)) as ledger:
        studies = open_site(home, config, ledger, training or Training())
        board = studies.board
        slot = SendSlot(seconds=config.send_slot_s, wait=stop.wait)
        session = _session(studies, connection, slot, asked=lambda: caretaker.ask_renewal())
        threading.Thread(target=_forward, args=(stop, session), name="stop", daemon=True).start()
        caretaker = _caretaker(studies, session)
        caretaker.tick()
        threading.Thread(target=caretaker.run, args=(stop,), name="caretaker", daemon=True).start()
        try:
            with _monitor(home, config):
                _prepare(studies)
                asyncio.run(session.run())
        except WardroundError as error:
            board.show(phase="failed", message=error.message)
            raise
        log.info("stopped")


def _monitor(home: Home, config: ClientConfig) -> AbstractContextManager[object]:
    if config.monitor.port is None:
        return nullcontext()
    return Monitor(config.monitor.port, lambda: metrics.samples(home, time.time), lambda: metrics.unhealthy(home))


def open_site(home: Home, config: ClientConfig, ledger: Ledger, training: Training) -> SiteStudies:
    """Return the site's studies with their real collaborators."""
    board = StatusBoard(home.status)
    board.show(phase="starting")
    gate = Gate(site=config.site, policy=load_policy(home))
    return SiteStudies(
        home=home,
        config=config,
        gate=gate,
        ledger=ledger,
        vault=Vault(home.sealed, home.local_key),
        blobs=FileBlobStore(home.blobs),
        board=board,
        key=load_identity_key(home.identity_key),
        get_study=lambda digest: _get_study(home, config, digest),
        training=training,
    )


def renew_at_start(home: Home, config: ClientConfig) -> None:
    """Get a new transport certificate while the old one still works; a server that is away can wait."""
    try:
        if renew_if_due(home.root, site=config.site, address=config.server, proxy=config.proxy):
            log.info("transport certificate renewed")
    except TransportError as error:
        log.warning("the certificate could not be renewed yet", why=str(error))


def _caretaker(studies: SiteStudies, session: Session) -> Caretaker:
    home, config = studies.home, studies.config

    def renew(asked: bool) -> None:
        if waiting_withdrawals(home):
            with Calls(Connection.from_home(home.root, address=config.server, proxy=config.proxy)) as calls:
                send_withdrawals(home, calls, studies.gate.policy.pins.operator)
        if renew_if_due(home.root, site=config.site, address=config.server, proxy=config.proxy, asked=asked):
            session.use(Connection.from_home(home.root, address=config.server, proxy=config.proxy))
            log.info("transport certificate renewed while running")

    return Caretaker(
        home=home,
        training_hours=studies.gate.policy.training_hours,
        line=session,
        board=studies.board,
        renew=renew,
        clock=time.monotonic,
    )


def _get_study(home: Home, config: ClientConfig, digest: str) -> bytes:
    """Ask over a new connection, so that a certificate renewed meanwhile is used."""
    with Calls(Connection.from_home(home.root, address=config.server, proxy=config.proxy)) as calls:
        return calls.get_study(digest)


def _prepare(studies: SiteStudies) -> None:
    """Open what was approved, so that the first plan finds model and caches in memory."""
    for digest in studies.home.approved_studies():
        if is_ended(studies.home, digest):
            continue
        try:
            studies.open(digest)
        except TransportError as error:
            log.warning("the server is not reachable yet", why=str(error))
        except WardroundError as error:
            log.error("an approved study cannot be opened yet", code=error.code, why=str(error), next=error.next_step)


def _forward(stop: threading.Event, session: Session) -> None:
    stop.wait()
    session.stop()


def _session(studies: SiteStudies, connection: Connection, slot: SendSlot, *, asked: Callable[[], None]) -> Session:
    app = client_app(studies)
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})

    def handle(message: Message) -> Message:
        return app(message, context)

    def on_state(state: SessionState) -> None:
        if state.phase == "away":
            studies.board.away("paused", state.text)
        elif state.phase in ("connecting", "waiting"):
            studies.board.away("connecting", state.text)
        elif state.phase == "connected":
            studies.board.back()

    return Session(
        connection,
        slot.held(handle),
        identity=load_public_key(studies.home.keys / "identity.pub"),
        blobs=studies.blobs,
        studies=studies.home.approved_studies,
        on_state=on_state,
        on_renew=asked,
    )
