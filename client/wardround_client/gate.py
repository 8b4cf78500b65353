"""The policy gate: nothing is trained unless a person approved exactly this, and it still holds.

Rules.
- A study is admitted only if (1) it is signed by the pinned operator and by every member, this site
  included; (2) a person whom the policy names as an approver, and whose key the daemon does not hold,
  signed an approval of this study under today's policy; (3) the policy still passes; (4) the study's
  claimed ε covers its plan.
- A plan is admitted only if (5) it is for an admitted study, a round within the approved plan and the
  study's cohort; (6) it starts from the adapter that this site knows: the study's initial one, or the
  result in the last cosigned entry; (7) from the second round on it carries the previous checkpoint with
  the witness quorum; (8) the study began here no longer ago than its `max_hours`. The ledger then pins it
  (`ledger.begin`).
- What fails is a typed error for the local log; the server only hears a generic refusal.
"""

from dataclasses import dataclass
from pathlib import Path

from wardround_client.agreed import Agreed
from wardround_client.restored import require_remembered
from wardround_common.audit.witness import verify_quorum
from wardround_common.errors import PolicyError, ProtocolError, StorageError, VerificationError
from wardround_common.policy import POLICY_APPROVAL_TYPE, Approval, Policy, require
from wardround_common.privacy.accountant import check_claim
from wardround_common.rounds import RoundPlan
from wardround_common.signing import Envelope, fingerprint, open_envelope, parse_public_key
from wardround_common.study import Study, open_cosigned


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Admits studies and plans at one site.

    Args:
        site: this hospital's name.
        policy: the policy on this hospital's disk, as the responsible person signed it.
    """

    site: str
    policy: Policy

    def admit_study(self, envelope: Envelope, approval: Envelope) -> Study:
        """Return the study behind `envelope` if it may be trained here.

        Raises:
            VerificationError: a signature or the approval does not hold (1), (2).
            PolicyError: the policy refuses (3).
            BudgetError: the claimed ε does not cover the plan (4).
        """
        study = open_cosigned(envelope, self.policy.pins.operator)  # (1)
        study.member(self.site)
        self._require_approval(study, approval)  # (2)
        require(self.policy, study)  # (3)
        check_claim(study.privacy)  # (4)
        return study

    def _require_approval(self, study: Study, approval: Envelope) -> None:
        payload = open_envelope(approval, POLICY_APPROVAL_TYPE, [parse_public_key(self._approver(approval))])
        approved = Approval.from_bytes(payload)
        if approved.site != self.site or approved.study != study.sha256():
            raise VerificationError(
                "approval-for-another-study",
                f"the approval on file is not for study {study.name} at {self.site}",
                next_step="run: wardround client approve " + study.name,
            )
        if approved.policy != self.policy.sha256():
            raise PolicyError(
                "policy-changed",
                f"policy.yaml was changed after study {study.name} was approved",
                next_step="restore the file, or approve again: wardround client approve " + study.name,
            )

    def _approver(self, approval: Envelope) -> str:
        """Return the key of the policy's approver who claims to have signed."""
        claimed = {signature.keyid for signature in approval.signatures}
        for key in self.policy.approvers.values():
            if fingerprint(key) in claimed:
                return key
        raise VerificationError(
            "approval-not-by-approver",
            "the approval on file is by nobody whom today's policy names as an approver",
            next_step="one of approvers in policy.yaml runs: wardround client approve STUDY",
        )

    def admit_plan(
        self, study: Study, plan: RoundPlan, agreed: Agreed, *, began: float | None = None, now: float = 0.0
    ) -> None:
        """Return if `plan` may be trained.

        Args:
            study: an admitted study.
            plan: the server's request.
            agreed: what this site has witnessed so far.
            began: when the study's first round began here, None if none did; Unix seconds, like `now`.
            now: the present moment.

        Raises:
            ProtocolError: another study, round or cohort (5), or another adapter (6).
            VerificationError: the previous round is not witnessed by the quorum (7), or this site does not remember
                that it cosigned it (`restored`).
            PolicyError: the study's hours are over (8).
        """
        last = study.privacy.rounds + study.privacy.spare_rounds
        names = tuple(member.name for member in study.cohort.members)
        if plan.study != study.sha256() or plan.round > last or plan.cohort != names:  # (5)
            raise ProtocolError(
                "plan-outside-study",
                f"the plan for round {plan.round} is not within study {study.name}",
                next_step="nothing to do here; tell the operator",
            )
        if plan.adapter.digest != agreed.adapter:  # (6)
            raise ProtocolError(
                "plan-wrong-adapter",
                f"round {plan.round} starts from an adapter that is not the witnessed result of the last round",
                next_step="stop the study and compare audit logs with the other members",
            )
        if plan.round > 1:  # (7)
            self._require_witnessed(study, plan, agreed)
        if began is not None and now - began > study.timing.max_hours * 3_600:  # (8)
            raise PolicyError(
                "study-out-of-time",
                f"study {study.name} began more than {study.timing.max_hours:g} hours ago",
                next_step="the study is over here: wardround client leave STUDY gives its unspent rounds back",
            )

    def _require_witnessed(self, study: Study, plan: RoundPlan, agreed: Agreed) -> None:
        members = {member.name: member.identity for member in study.cohort.members}
        seen = verify_quorum(plan.witnessed, study.server.log, members, study.cohort.witness_quorum)
        remembered = max(agreed.cosigned, agreed.size)
        require_remembered(plan.witnessed, size=seen.size, remembered=remembered, study=study, site=self.site)
        if agreed.round < plan.round - 1 or seen.size < agreed.size:
            raise VerificationError(
                "plan-not-witnessed",
                f"round {plan.round} is asked for before round {plan.round - 1} was witnessed here",
                next_step="wait: the server must offer its checkpoint first; if it lasts, tell the operator",
            )


def load_policy_approval(path: Path) -> Envelope:
    """Return the approval envelope stored by `wardround client approve`.

    Raises:
        StorageError: no approval on file.
        ProtocolError: the file is damaged.
    """
    try:
        return Envelope.from_bytes(path.read_bytes())
    except FileNotFoundError:
        raise StorageError(
            "approval-missing",
            "this study has not been approved at this site",
            next_step="run: wardround client approve STUDY",
        ) from None
