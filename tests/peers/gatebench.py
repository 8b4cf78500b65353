"""One hospital's gate with everybody's keys: a study, its policy, approvals, plans and checkpoints, all forgeable."""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from peers.studies import REVIEWER, SITES, Cast, make_study

from wardround_client.agreed import Agreed
from wardround_client.gate import Gate
from wardround_common.audit.note import Checkpoint, add_lines, log_key_of, sign_checkpoint, sign_cosignature
from wardround_common.documents import sha256_digest
from wardround_common.policy import POLICY_APPROVAL_TYPE, Approval, Pins, Policy
from wardround_common.rounds import BlobRef, RoundPlan
from wardround_common.signing import Envelope, public_key_text, sign_document
from wardround_common.study import Study

SITE = SITES[0]
ORIGIN = "wardround/test"
ADAPTER = BlobRef(digest=sha256_digest(b"initial"), length=7)
RESULT = BlobRef(digest=sha256_digest(b"result of round 1"), length=7)


class Bench:
    def __init__(self) -> None:
        self.cast, self.person = Cast(), Ed25519PrivateKey.generate()
        self.log = str(log_key_of(ORIGIN, self.cast.log.public_key()))
        self.study = make_study(self.cast, log=self.log)
        self.policy = Policy(
            lifetime_epsilon=10.0,
            lifetime_delta=1e-5,
            max_epsilon=8.0,
            max_delta=1e-5,
            units=("record",),
            min_noise_multiplier=0.5,
            min_cohort=3,
            min_colluders=1,
            let_server_see_single_updates=True,
            models=(self.study.model.content,),
            tasks=("classification",),
            min_witness_quorum=3,
            datasets={"notes": ("any",)},
            evaluations=("none",),
            max_rank=8,
            target_modules=self.study.adapter.target_modules,
            max_rounds=100,
            max_hours=48.0,
            approvers={"head": public_key_text(self.person.public_key())},
            pins=Pins(
                operator=public_key_text(self.cast.operator.public_key()),
                log=self.log,
                members={s: public_key_text(k.public_key()) for s, k in self.cast.members.items()},
                reviewers={"board": REVIEWER},
            ),
        )
        self.gate = Gate(site=SITE, policy=self.policy)

    def approval(self, approved: Study | None = None, /, **changes: str) -> Envelope:
        fields = {"site": SITE, "study": (approved or self.study).sha256(), "policy": self.policy.sha256(), **changes}
        return sign_document(Approval(**fields).to_bytes(), POLICY_APPROVAL_TYPE, self.person)

    def agreed(self, round_: int = 0, size: int = 0, adapter: BlobRef = ADAPTER) -> Agreed:
        return Agreed(study=self.study.sha256(), adapter=adapter.digest, round=round_, size=size)

    def note(self, size: int, witnesses: tuple[str, ...] = SITES) -> str:
        head = Checkpoint(origin=ORIGIN, size=size, root=bytes(32))
        lines = [sign_cosignature(head, site, self.cast.members[site], 1_700_000_000) for site in witnesses]
        return add_lines(sign_checkpoint(head, self.cast.log), lines)

    def plan(self, round_: int = 1, **changes: object) -> RoundPlan:
        fields = {
            "study": self.study.sha256(),
            "round": round_,
            "cohort": SITES,
            "adapter": ADAPTER if round_ == 1 else RESULT,
            "witnessed": "" if round_ == 1 else self.note(10),
        }
        return RoundPlan(**{**fields, **changes})
