"""Everything the operator may see now, as one plain document: `server status --json`, and the screen's source.

Rules. Read from the home only; works while the server runs and while it does not. ε stands with δ,
unit and adjacency. Times are Unix seconds.
"""

import json
from typing import Any

from wardround_common.signing import fingerprint
from wardround_server.office import Office
from wardround_server.status import ServerStatus, StudyView, read_status
from wardround_server.studies import Proposal


def overview(office: Office) -> dict[str, Any]:
    """Return phase, studies with their members' states, connections, members and invites."""
    status = read_status(office.home.status) or ServerStatus()
    now: dict[str, Any] = json.loads(status.to_bytes())
    if not office.home.status.exists():
        now["phase"] = "not started"
    members = office.registry.members()
    return {
        **now,
        "operator": office.config.name,
        "studies": [
            _study(office, proposal, status.studies.get(proposal.study.name)) for proposal in office.shelf.all()
        ],
        "enrolled": {
            site: {"fingerprint": fingerprint(member.identity), "expires": member.expires}
            for site, member in members.items()
        },
        "invited": office.registry.open_invites(),
    }


def _study(office: Office, proposal: Proposal, view: StudyView | None) -> dict[str, Any]:
    study = proposal.study
    p, cohort, digest = study.privacy, study.cohort, study.sha256()
    return {
        "name": study.name,
        "digest": digest,
        "missing": list(proposal.missing),
        "completed": office.home.completed(study.name).exists(),
        "aborted": office.endings.reason(digest),
        "withdrawn": sorted(office.endings.withdrawn(digest)),
        "members": [member.name for member in cohort.members],
        "min_cohort": cohort.min_cohort,
        "witness_quorum": cohort.witness_quorum,
        "round_deadline_s": study.timing.round_deadline_s,
        "plan": {
            "epsilon": p.epsilon,
            "delta": p.delta,
            "unit": p.unit,
            "adjacency": p.adjacency,
            "rounds": p.rounds,
            "spare_rounds": p.spare_rounds,
        },
        "now": json.loads(view.to_bytes()) if view else None,
    }
