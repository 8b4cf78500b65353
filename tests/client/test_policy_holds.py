"""Whatever a server sends, and all other members sign, nothing runs here that the signed policy does not allow.

The oracle below is written from the policy's words and shares no code with `policy.review`.
"""

from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peers.gatebench import ADAPTER, RESULT, SITE, Bench
from peers.studies import SITES, cosigned, make_adapter, study_task
from pydantic import ValidationError

from wardround_client.gate import Gate
from wardround_client.ledger import Ledger
from wardround_client.protection import SealedUpdates
from wardround_client.rounds import Rounds, Trained
from wardround_client.vault import Vault
from wardround_common.adapter import encode_tensors, initial_tensors
from wardround_common.documents import sha256_digest
from wardround_common.envelope.update import new_update_key
from wardround_common.errors import WardroundError
from wardround_common.policy import Policy
from wardround_common.rounds import BlobRef, RoundPlan
from wardround_common.signing import Envelope
from wardround_common.study import Study, UpdateProtection
from wardround_common.wire.blobstore import FileBlobStore

BENCH = Bench()
DIGESTS = st.sampled_from([BENCH.study.model.content, sha256_digest(b"another model")])

CHANGES: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "privacy": {
        "epsilon": st.sampled_from([0.5, 7.9, 8.0, 8.0001, 1e6]),
        "delta": st.sampled_from([1e-7, 1e-5, 1.001e-5, 9e-3]),
        "unit": st.sampled_from(["record", "patient"]),
        "noise_multiplier": st.sampled_from([1e-9, 0.4999, 0.5, 1.0, 5.0]),
        "sample_rate": st.sampled_from([0.1, 1.0]),
        "steps_per_round": st.sampled_from([1, 2, 10_000]),
        "rounds": st.sampled_from([3, 100, 101, 10_000]),
        "spare_rounds": st.sampled_from([0, 1, 98, 10_000]),
    },
    "cohort": {"min_cohort": st.integers(2, 4), "colluders": st.integers(0, 2), "witness_quorum": st.integers(1, 4)},
    "adapter": {
        "rank": st.sampled_from([1, 2, 8, 9, 256]),
        "target_modules": st.sampled_from([("query",), ("query", "value"), ("query", "embeddings")]),
    },
    "model": {"content": DIGESTS, "source": st.sampled_from(["tiny", "../../etc", "https://evil.example/x"])},
    "task": {"dataset": st.sampled_from(["notes", "psychiatry", "notes-2"])},
    "timing": {"max_hours": st.sampled_from([1.0, 48.0, 48.1, 8760.0])},
}


@st.composite
def studies(draw: st.DrawFn) -> Study:
    """Return a study that the operator and all members may well have signed; most break some clause."""
    study = BENCH.study
    for section, fields in draw(st.dictionaries(st.sampled_from(sorted(CHANGES)), st.none(), max_size=3)).items():
        del fields
        field = draw(st.sampled_from(sorted(CHANGES[section])))
        part = getattr(study, section).model_copy(update={field: draw(CHANGES[section][field])})
        study = study.model_copy(update={section: part})
    extra = draw(st.sampled_from([{}, {"evaluation": "public:set"}, {"purpose": "sell it"}, {"name": "other"}]))
    return study.model_copy(update=extra)


def allows(policy: Policy, study: Study) -> bool:
    """Say in other words whether the policy's limits hold for this study."""
    p, c = study.privacy, study.cohort
    return all(
        (
            p.epsilon <= policy.max_epsilon,
            p.delta <= policy.max_delta,
            p.unit in policy.units,
            p.noise_multiplier >= policy.min_noise_multiplier,
            p.rounds + p.spare_rounds <= policy.max_rounds,
            study.timing.max_hours <= policy.max_hours,
            c.min_cohort >= policy.min_cohort,
            c.colluders >= policy.min_colluders,
            c.witness_quorum >= policy.min_witness_quorum,
            study.protection is not UpdateProtection.HPKE or policy.let_server_see_single_updates,
            study.model.content in policy.models,
            study.task.kind in policy.tasks,
            study.task.dataset in policy.datasets,
            {study.purpose, "any"} & set(policy.datasets.get(study.task.dataset, ())),
            study.evaluation in policy.evaluations,
            study.adapter.rank <= policy.max_rank,
            set(study.adapter.target_modules) <= set(policy.target_modules),
        )
    )


def policy_of(purpose: bool) -> Policy:
    return BENCH.policy if purpose else BENCH.policy.model_copy(update={"datasets": {"notes": (BENCH.study.purpose,)}})


STRANGE = BlobRef(digest=sha256_digest(b"x"), length=9)
ACCEPTED: list[Study] = []


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(studies(), st.booleans())
def test_no_study_that_breaks_the_policy_is_ever_admitted(study: Study, any_purpose: bool) -> None:
    try:
        study = Study.from_bytes(study.to_bytes())  # what is no study at all is refused even earlier
    except WardroundError:
        return
    policy = policy_of(any_purpose)
    approval = BENCH.approval(study, policy=policy.sha256())  # a person was even talked into approving it
    try:
        Gate(site=SITE, policy=policy).admit_study(cosigned(BENCH.cast, study), approval)
    except WardroundError:
        return
    ACCEPTED.append(study)
    assert allows(policy, study)


def test_the_property_was_not_empty() -> None:
    """The gate admits the honest study, and the generator above reached admissions."""
    assert BENCH.gate.admit_study(cosigned(BENCH.cast, BENCH.study), BENCH.approval()) == BENCH.study
    assert allows(BENCH.policy, BENCH.study)


class Site:
    """A hospital's rounds with the real gate, ledger, vault and sealing; training is one line of numpy."""

    def __init__(self, folder: Path) -> None:
        key = new_update_key(folder / "update.key")
        self.bench = Bench()
        adapter, layout = make_adapter(study_task())
        server = self.bench.study.server.model_copy(update={"update_key": key})
        self.study = self.bench.study.model_copy(update={"server": server, "adapter": adapter})
        tensors = initial_tensors(layout, adapter.seed)
        trained = {spec.name: tensors[spec.name] for spec in layout.trained}
        self.blobs = FileBlobStore(folder / "blobs", spare_bytes=0)
        self.adapter = self.blobs.put(encode_tensors(trained))
        self.ledger = Ledger.open(folder / "ledger.db", writer=True)
        self.ledger.reserve(self.study, cap_epsilon=100.0, cap_delta=1e-5)
        self.trained: list[int] = []
        vault = Vault(folder / "sealed", folder / "local.key")
        self.rounds = Rounds(
            site=SITE,
            study=self.study,
            specs=layout.trained,
            gate=self.bench.gate,
            ledger=self.ledger,
            vault=vault,
            protection=SealedUpdates(site=SITE, study=self.study, blobs=self.blobs, key=self.bench.cast.members[SITE]),
            key=self.bench.cast.members[SITE],
            new_seed=lambda: bytes(32),
            phase=lambda phase, round_: None,
        )

    def train(self, tensors: Any, round_: int, seed: bytes, state: bytes | None) -> Trained:
        self.trained.append(round_)
        return Trained(delta={name: np.ones_like(value) for name, value in tensors.items()}, optimiser_state=b"s")

    def ask(self, plan: RoundPlan, agreed_round: int) -> Envelope | None:
        adapter = self.adapter if agreed_round == 0 else RESULT
        agreed = self.bench.agreed(agreed_round, 10 if agreed_round else 0, adapter)
        agreed = agreed.model_copy(update={"study": self.study.sha256()})
        try:
            return self.rounds.answer(plan, None, agreed, self.blobs.read, self.train)[0].header
        except WardroundError:
            return None


def plans(site: Site) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "study": st.sampled_from([site.study.sha256(), sha256_digest(b"other")]),
            "round": st.sampled_from([1, 1, 2, 3, 4, 10_000]),
            "cohort": st.sampled_from([SITES, SITES[:2], SITES[::-1]]),
            "adapter": st.sampled_from([site.adapter, site.adapter, RESULT, ADAPTER, STRANGE]),
            "witnessed": st.sampled_from(["", site.bench.note(10), site.bench.note(11, SITES[:2])]),
        }
    )


def test_no_sequence_of_plans_trains_twice_or_beyond_the_reservation(tmp_path_factory: Any) -> None:
    answers: dict[int, bytes] = {}
    site = Site(tmp_path_factory.mktemp("site"))
    limit = site.study.privacy.rounds + site.study.privacy.spare_rounds

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def attack(data: st.DataObject) -> None:
        try:
            plan = RoundPlan(**data.draw(plans(site)))
        except ValidationError:
            return
        header = site.ask(plan, data.draw(st.integers(0, 2)))
        if header is not None:
            assert answers.setdefault(plan.round, header.to_bytes()) == header.to_bytes()
        assert len(set(site.trained)) == len(site.trained) <= limit
        assert len(site.ledger.history()) <= limit

    attack()
    assert site.trained[:1] == [1], "the honest plan was never reached"
