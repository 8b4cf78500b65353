"""The shelf of studies: no signature is lost, and the log knows of everything that the shelf holds."""

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from peers.studies import SITES, Cast, make_study

from wardround_common.audit.events import StudyApproved, StudyCreated
from wardround_common.errors import ProtocolError, StorageError
from wardround_common.signing import Envelope, public_key_text, sign_document
from wardround_common.study import STUDY_TYPE, Study
from wardround_server import studies
from wardround_server.database import Database
from wardround_server.enrolment import Registry
from wardround_server.home import Home
from wardround_server.studies import Proposal, StudyShelf

CAST = Cast()


@pytest.fixture
def shelf(tmp_path: Path) -> StudyShelf:
    (tmp_path / "state").mkdir()
    database = Database.open(tmp_path / "state" / "server.db")
    for number, (site, key) in enumerate(CAST.members.items()):
        with database.transaction() as db:
            db.execute(
                "INSERT INTO members VALUES (?, ?, ?, '', 0, 0, x'', 'live')",
                (f"sha256:{number:064x}", site, public_key_text(key.public_key())),
            )
    operator = public_key_text(CAST.operator.public_key())
    return StudyShelf(home=Home(tmp_path), registry=Registry(database), operator=operator)


def _propose(shelf: StudyShelf) -> Study:
    study = make_study(CAST, name="demo")
    shelf.add(Proposal(study=study, envelope=sign_document(study.to_bytes(), STUDY_TYPE, CAST.operator)))
    return study


def _log_everything(shelf: StudyShelf) -> None:
    shelf.registry.done([item.id for item in shelf.registry.take_events()])


def _signed(study: Study, site: str) -> bytes:
    return sign_document(study.to_bytes(), STUDY_TYPE, CAST.members[site]).to_bytes()


def _approvals(shelf: StudyShelf) -> list[str]:
    return [item.event.site for item in shelf.registry.take_events() if isinstance(item.event, StudyApproved)]


def test_members_that_approve_in_the_same_moment_are_all_kept(
    shelf: StudyShelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = _propose(shelf)
    _log_everything(shelf)
    real, together = studies.write_durably, threading.Barrier(len(SITES))

    def late(path: Path, data: bytes) -> None:  # whoever read the file before now holds an old copy
        with contextlib.suppress(threading.BrokenBarrierError):
            together.wait(timeout=0.2)
        real(path, data)

    monkeypatch.setattr(studies, "write_durably", late)
    with ThreadPoolExecutor(len(SITES)) as pool:
        list(pool.map(lambda site: shelf.cosign(site, _signed(study, site)), SITES))
    assert shelf.get("demo").missing == ()
    assert sorted(_approvals(shelf)) == sorted(SITES)


def test_the_same_approval_twice_is_logged_once(shelf: StudyShelf) -> None:
    study = _propose(shelf)
    _log_everything(shelf)
    first = shelf.cosign(SITES[0], _signed(study, SITES[0]))
    assert shelf.cosign(SITES[0], _signed(study, SITES[0])) == first
    assert len(Envelope.from_bytes(first).signatures) == 2
    assert _approvals(shelf) == [SITES[0]]


def test_a_crash_never_leaves_what_the_log_does_not_know(shelf: StudyShelf, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise StorageError("file-not-written", f"cannot write {path}: disk full", next_step="free disk space")

    with monkeypatch.context() as broken:
        broken.setattr(studies, "write_durably", full)
        with pytest.raises(StorageError):
            _propose(shelf)
    assert [type(item.event) for item in shelf.registry.take_events()] == [StudyCreated]
    assert shelf.all() == ()
    study = _propose(shelf)
    _log_everything(shelf)
    with monkeypatch.context() as broken:
        broken.setattr(studies, "write_durably", full)
        with pytest.raises(StorageError):
            shelf.cosign(SITES[0], _signed(study, SITES[0]))
    assert SITES[0] in shelf.get("demo").missing
    shelf.cosign(SITES[0], _signed(study, SITES[0]))
    assert SITES[0] not in shelf.get("demo").missing
    assert _approvals(shelf) == [SITES[0], SITES[0]], "once too often rather than not at all"


@pytest.mark.parametrize("content", [b"", b"{", b'{"payload":1}', b"\xff"])
def test_a_study_whose_file_is_torn_disturbs_no_other(shelf: StudyShelf, content: bytes) -> None:
    """As a person who edits it in place leaves it for a moment: every read meets the half-written file."""
    whole = _propose(shelf)
    other = make_study(CAST, name="other")
    shelf.add(Proposal(study=other, envelope=sign_document(other.to_bytes(), STUDY_TYPE, CAST.operator)))
    shelf.home.study("other").write_bytes(content)
    assert [proposal.study for proposal in shelf.all()] == [whole]
    with pytest.raises(ProtocolError):
        shelf.get("other")
    assert shelf.get("demo").study == whole


def test_a_study_is_verified_again_only_when_its_file_changed(
    shelf: StudyShelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, real, verified = _propose(shelf), studies.open_proposed, []

    def counting(envelope: Envelope, operator: str) -> Study:
        verified.append(envelope)
        return real(envelope, operator)

    monkeypatch.setattr(studies, "open_proposed", counting)
    assert [shelf.get("demo").study for _ in range(3)] == [study] * 3
    assert len(verified) == 1
    file = shelf.home.study("demo")
    good = file.read_bytes()
    file.write_bytes(good.replace(b'"signatures":[{"keyid":"', b'"signatures":[{"keyid":"x'))
    assert shelf.all() == ()
    file.write_bytes(good)
    assert [proposal.study for proposal in shelf.all()] == [study]
    assert len(verified) == 2
