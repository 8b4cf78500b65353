"""Approving a study at one hospital: look, check locally, reserve, sign; nothing leaves before the end.

Rules.
- The order is: signatures of the proposal, policy, price, base model, data, budget; `check` is a dry
  run that lists every finding, `approve` signs only if all pass, and else the only outcome is that
  nobody signs. Data are checked here and only here.
- Approval reserves the whole plan in the ledger before this site's signature leaves.
- The approval is signed with the key of a person whom the signed policy names as an approver; the
  daemon does not hold it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from wardround_client.config import ClientConfig
from wardround_client.ending import require_not_ended
from wardround_client.home import Home
from wardround_client.ledger import Ledger
from wardround_client.ledger_budget import Budget, plan_of
from wardround_client.policies import load_policy
from wardround_client.site_data import SiteData, space_of
from wardround_common.config import load_yaml
from wardround_common.documents import sha256_digest
from wardround_common.errors import ConfigError, VerificationError, WardroundError
from wardround_common.files import write_durably
from wardround_common.identity.keys import load_identity_key, load_public_key
from wardround_common.models import locate_model, require_digest
from wardround_common.policy import POLICY_APPROVAL_TYPE, Approval, Clause, Policy, require, require_approver, review
from wardround_common.privacy.accountant import Price, check_claim, plan_price
from wardround_common.signing import Envelope, public_key_text, sign_document
from wardround_common.study import Study, open_proposed


class StudyCalls(Protocol):
    """The calls that approving needs (`transport.calls.Calls`)."""

    def get_study(self, reference: str) -> bytes:
        """Return a study's envelope, unverified."""

    def cosign(self, envelope: bytes) -> bytes:
        """Send this site's signature; return the envelope with all signatures so far, unverified."""


@dataclass(frozen=True, kw_only=True)
class Considered:
    """A proposal beside this hospital's policy."""

    study: Study
    envelope: Envelope = field(repr=False)
    policy: Policy
    clauses: tuple[Clause, ...]
    price: Price


@dataclass(frozen=True, kw_only=True)
class Approver:
    """Considers and approves studies for the site in `home`."""

    home: Home
    config: ClientConfig
    calls: StudyCalls
    ledger: Ledger

    def consider(self, reference: str) -> Considered:
        """Return the proposal and what the policy says; nothing is decided.

        Raises:
            VerificationError: not signed by the pinned operator, or this site is no member.
        """
        policy = load_yaml(self.home.policy, Policy)
        envelope = Envelope.from_bytes(self.calls.get_study(reference))
        study = open_proposed(envelope, policy.pins.operator)
        require_not_ended(self.home, study.sha256())
        if reference not in (study.name, study.sha256()):
            raise _altered(f"the server sent study {study.name} when asked for {reference}")
        own = study.member(self.config.site).identity
        if own != load_public_key(self.home.keys / "identity.pub"):
            raise _altered(f"the study names another identity for {self.config.site} than this site's")
        return Considered(
            study=study,
            envelope=envelope,
            policy=policy,
            clauses=review(policy, study),
            price=plan_price(study.privacy),
        )

    def check(self, considered: Considered) -> tuple[Clause, ...]:
        """Return every finding: all clauses of the policy, then budget, price, base model and data.

        Nothing is signed, stored or sent.
        """
        study, policy = considered.study, considered.policy
        local = (
            ("policy signed", "the responsible person's signature", lambda: load_policy(self.home)),
            ("lifetime budget", f"ε = {policy.lifetime_epsilon:g}", lambda: self._require_room(considered)),
            ("price of the plan", f"at most ε = {study.privacy.epsilon:g}", lambda: check_claim(study.privacy)),
            ("send slot of this site", "before the deadline", lambda: require_slot(self.config, study)),
            ("base model on this machine", study.model.content[:19] + "…", lambda: self._require_model(study)),
            ("data of this hospital", "usable", lambda: self._site_data(considered).require()),
        )
        return (*considered.clauses, *(_finding(name, allowed, test) for name, allowed, test in local))

    def require(self, considered: Considered) -> int:
        """Return if this study can be approved here: policy and its signature, price, base model, data.

        Returns:
            How many short texts occur under more than one patient, for the person to judge.

        Raises:
            PolicyError, BudgetError, VerificationError, ConfigError, DataError: the first that fails.
        """
        study = considered.study
        load_policy(self.home)
        require(considered.policy, study)
        check_claim(study.privacy)
        require_slot(self.config, study)
        self._require_model(study)
        return self._site_data(considered).require()

    def _require_model(self, study: Study) -> None:
        folder = locate_model(self.config.model.source or study.model.source, offline=self.config.model.offline)
        require_digest(folder, study.model.content)

    def budget(self, considered: Considered) -> Budget:
        """Return the lifetime budget that the study would be charged to, as if it were not reserved yet."""
        policy = considered.policy
        return self.ledger.budget(
            cap_epsilon=policy.lifetime_epsilon,
            cap_delta=policy.lifetime_delta,
            space=self._space(considered),
            without=considered.study.sha256(),
        )

    def _require_room(self, considered: Considered) -> None:
        study = considered.study
        self.ledger.require_space(study.task.dataset, self._space(considered))
        self.budget(considered).require(study.name, plan_of(study))

    def _space(self, considered: Considered) -> str:
        return space_of(considered.policy, considered.study.task.dataset)

    def _site_data(self, considered: Considered) -> SiteData:
        return SiteData(home=self.home, config=self.config, policy=considered.policy, study=considered.study)

    def approve(self, considered: Considered, approver_key: Path) -> Envelope:
        """Reserve the plan, sign as the responsible person and as the site, and send the co-signature.

        Raises:
            VerificationError: the policy names nobody with this key as an approver.
            BudgetError: the lifetime budget does not suffice; nothing was signed.
        """
        study, policy = considered.study, considered.policy
        person = load_identity_key(approver_key)
        require_approver(policy, public_key_text(person.public_key()))
        self.ledger.reserve(
            study,
            cap_epsilon=policy.lifetime_epsilon,
            cap_delta=policy.lifetime_delta,
            space=self._space(considered),
        )
        approval = Approval(site=self.config.site, study=study.sha256(), policy=policy.sha256())
        signed = sign_document(approval.to_bytes(), POLICY_APPROVAL_TYPE, person)
        write_durably(self.home.approval(study.sha256()), signed.to_bytes())
        own = considered.envelope.with_signature(load_identity_key(self.home.identity_key))
        answered = Envelope.from_bytes(self.calls.cosign(own.to_bytes()))
        if sha256_digest(answered.payload_bytes()) != study.sha256():
            raise _altered("the server answered with another study than the one that was signed")
        write_durably(self.home.study(study.sha256()), answered.to_bytes())
        return answered


def require_slot(config: ClientConfig, study: Study) -> None:
    """Return if an answer that waits for this site's send slot can come in time.

    Raises:
        ConfigError: the first slot ends after the study's deadline, so no answer ever would.
    """
    slot, deadline = config.send_slot_s, study.timing.round_deadline_s
    if slot is not None and slot >= deadline:
        raise ConfigError(
            "send-slot-too-long",
            f"send_slot_s is {slot:g} s, and study {study.name} waits {deadline:g} s for an answer",
            next_step="set a shorter send slot in client.toml, or ask the operator for a longer round_deadline_s",
        )


def _finding(name: str, allowed: str, test: Callable[[], object]) -> Clause:
    """Return a clause from a local test: what it raises is a refusal in the same words."""
    try:
        test()
    except WardroundError as error:
        return Clause(name=name, asked=error.message, allowed=allowed, passed=False)
    return Clause(name=name, asked="yes", allowed=allowed, passed=True)


def _altered(why: str) -> VerificationError:
    return VerificationError(
        "study-altered", why, next_step="do not approve; compare the study's digest with the operator by telephone"
    )
