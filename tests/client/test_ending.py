"""A study ends here by the operator's abort or by leaving: what goes, what comes back, what stays."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from peers.ledger_child import plan
from peers.studies import SITES, Cast, make_study

from wardround_client.ending import (
    SiteEnding,
    end_studies_of_old_identity,
    is_ended,
    require_not_ended,
    send_withdrawals,
    waiting_withdrawals,
)
from wardround_client.home import Home
from wardround_client.ledger import Ledger
from wardround_client.rounds import vault_prefix
from wardround_client.vault import Vault
from wardround_common.ending import ABORT_TYPE, WITHDRAWAL_TYPE, Abort, Withdrawal, open_abort, open_withdrawal
from wardround_common.errors import BudgetError, PolicyError, TransportError, VerificationError
from wardround_common.identity.keys import write_private_key
from wardround_common.signing import Envelope, public_key_text, sign_document
from wardround_common.study import STUDY_TYPE
from wardround_common.wire.blobstore import FileBlobStore

CAST = Cast()
STUDY = make_study(CAST)
DIGEST = STUDY.sha256()
OPERATOR = public_key_text(CAST.operator.public_key())
SITE = SITES[0]
CAP = {"cap_epsilon": 8.0, "cap_delta": 1e-5}


class Bench:
    def __init__(self, folder: Path) -> None:
        self.home = Home(folder)
        self.ledger = Ledger.open(self.home.ledger, writer=True)
        self.vault = Vault(self.home.sealed, self.home.local_key)
        self.blobs = FileBlobStore(self.home.blobs, spare_bytes=0)
        self.ending = SiteEnding(home=self.home, site=SITE, ledger=self.ledger, vault=self.vault, blobs=self.blobs)
        self.key = CAST.members[SITE]
        self.ledger.reserve(STUDY, **CAP)

    def run_one_round(self) -> None:
        self.ledger.begin(DIGEST, 1, plan(1))
        update = self.blobs.put(b"sealed update")
        self.ledger.commit(DIGEST, 1, plan(1), b"header", b"record", update)
        self.vault.seal(vault_prefix(DIGEST) + "adam-1", b"state")
        self.vault.seal("another-study-seed-1", b"stays")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    (tmp_path / "keys").mkdir(mode=0o700)
    return Bench(tmp_path)


def abort_envelope(key: Ed25519PrivateKey = CAST.operator) -> Envelope:
    return sign_document(Abort(study=DIGEST, reason="operator").to_bytes(), ABORT_TYPE, key)


class Server:
    def __init__(self, key: Ed25519PrivateKey = CAST.operator) -> None:
        self.key, self.got, self.down = key, [], False

    def withdraw(self, envelope: bytes) -> bytes:
        if self.down:
            raise TransportError("transport-unreachable", "no line", next_step="-")
        self.got.append(envelope)
        return Envelope.from_bytes(envelope).with_signature(self.key).to_bytes()


def test_spent_stays_spent_and_the_rest_comes_back(bench: Bench) -> None:
    bench.run_one_round()
    before = bench.ledger.spent(DIGEST)
    assert bench.ending.end(DIGEST, abort_envelope()) == STUDY.privacy.rounds - 1
    assert bench.ledger.spent(DIGEST) == before
    with pytest.raises(BudgetError):
        bench.ledger.begin(DIGEST, 2, plan(2))


def test_the_studys_secrets_and_updates_are_gone_and_others_stay(bench: Bench) -> None:
    bench.run_one_round()
    bench.ending.end(DIGEST, abort_envelope())
    assert bench.vault.names(vault_prefix(DIGEST)) == ()
    assert bench.vault.open("another-study-seed-1") == b"stays"
    assert [path for path in bench.home.blobs.rglob("*") if path.is_file()] == []


def test_the_signed_reason_is_kept_and_ending_twice_does_no_harm(bench: Bench) -> None:
    reason = abort_envelope()
    bench.ending.end(DIGEST, reason)
    assert bench.ending.end(DIGEST, abort_envelope(Ed25519PrivateKey.generate())) == 0
    assert Envelope.from_bytes(bench.home.ended(DIGEST).read_bytes()) == reason
    assert is_ended(bench.home, DIGEST)
    with pytest.raises(PolicyError) as caught:
        require_not_ended(bench.home, DIGEST)
    assert caught.value.code == "study-ended"


def test_a_forged_abort_is_none(bench: Bench) -> None:
    assert open_abort(abort_envelope(), OPERATOR).study == DIGEST
    with pytest.raises(VerificationError):
        open_abort(abort_envelope(CAST.members[SITE]), OPERATOR)
    confused = sign_document(Abort(study=DIGEST, reason="operator").to_bytes(), WITHDRAWAL_TYPE, CAST.operator)
    with pytest.raises(VerificationError):
        open_abort(confused, OPERATOR)


def test_leaving_takes_effect_here_before_the_server_hears_of_it(bench: Bench) -> None:
    server = Server()
    server.down = True
    assert bench.ending.leave(DIGEST, bench.key) == STUDY.privacy.rounds
    assert is_ended(bench.home, DIGEST)
    with pytest.raises(TransportError):
        send_withdrawals(bench.home, server, OPERATOR)
    assert len(waiting_withdrawals(bench.home)) == 1
    server.down = False
    assert send_withdrawals(bench.home, server, OPERATOR) == 1
    assert waiting_withdrawals(bench.home) == ()
    assert len(list(bench.home.receipts.iterdir())) == 1
    withdrawal = open_withdrawal(
        Envelope.from_bytes(server.got[0]), site=SITE, identity=public_key_text(bench.key.public_key())
    )
    assert withdrawal == Withdrawal(site=SITE, study=DIGEST)


def test_a_receipt_by_somebody_else_does_not_count(bench: Bench) -> None:
    bench.ending.leave(DIGEST, bench.key)
    with pytest.raises(VerificationError):
        send_withdrawals(bench.home, Server(CAST.members[SITE]), OPERATOR)
    assert len(waiting_withdrawals(bench.home)) == 1


def test_a_receipt_for_something_else_does_not_count(bench: Bench) -> None:
    bench.ending.leave(DIGEST, bench.key)
    server = Server()
    other = sign_document(Withdrawal(site=SITE, study=None).to_bytes(), WITHDRAWAL_TYPE, CAST.operator)
    server.withdraw = lambda envelope: other.to_bytes()  # type: ignore[method-assign]
    with pytest.raises(VerificationError) as caught:
        send_withdrawals(bench.home, server, OPERATOR)
    assert caught.value.code == "receipt-differs"


def test_leaving_the_federation_ends_every_approved_study(bench: Bench) -> None:
    bench.home.approval(DIGEST).parent.mkdir()
    bench.home.approval(DIGEST).write_bytes(b"{}")
    assert bench.ending.leave(None, bench.key) == STUDY.privacy.rounds
    assert is_ended(bench.home, DIGEST)
    assert [path.name for path in waiting_withdrawals(bench.home)] == ["federation.json"]


def test_a_withdrawal_for_another_site_is_refused() -> None:
    identity = public_key_text(CAST.members[SITE].public_key())
    theirs = sign_document(Withdrawal(site=SITES[1], study=DIGEST).to_bytes(), WITHDRAWAL_TYPE, CAST.members[SITE])
    with pytest.raises(VerificationError) as caught:
        open_withdrawal(theirs, site=SITE, identity=identity)
    assert caught.value.code == "withdrawal-of-another-site"


def test_a_new_identity_ends_what_the_old_one_signed_and_nothing_else(bench: Bench) -> None:
    """After `enroll --again --new-identity`: studies that name the old key are over here, others go on."""
    new = Ed25519PrivateKey.generate()
    write_private_key(bench.home.identity_key, new)
    members = tuple(
        m.model_copy(update={"identity": public_key_text(new.public_key())}) if m.name == SITE else m
        for m in STUDY.cohort.members
    )
    renamed = STUDY.model_copy(update={"name": "next", "cohort": STUDY.cohort.model_copy(update={"members": members})})
    for study in (STUDY, renamed):
        for path in (bench.home.approval(study.sha256()), bench.home.study(study.sha256())):
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(sign_document(study.to_bytes(), STUDY_TYPE, CAST.operator).to_bytes())
    assert end_studies_of_old_identity(bench.home, SITE) == 1
    assert is_ended(bench.home, DIGEST)
    assert not is_ended(bench.home, renamed.sha256())
    assert end_studies_of_old_identity(bench.home, SITE) == 0
    assert waiting_withdrawals(bench.home) == (), "the old identity is revoked: there is nobody to tell"
