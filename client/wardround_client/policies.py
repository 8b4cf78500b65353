"""The hospital's signed policy on disk: reading, signing, and handing the signing key over.

Rules.
- `policy.yaml` is what a person reads and edits; `policy.sig` is the responsible person's signature
  (a DSSE envelope over the policy's canonical bytes). The daemon and every approval use the policy
  only if both agree and the key is the one in `approver.pub`, whose private half lies elsewhere.
- The signing key is handed over by its present owner: the new one signs the policy anew in the same
  step. If it is lost or stolen, whoever controls this machine replaces it, and says so; approvals
  that the old key gave stop counting until somebody in `approvers` approves again.
Not done here: what clauses mean (`wardround_common.policy`).

    >>> load_policy(Home(Path("client"))).max_epsilon  # doctest: +SKIP
    4.0
"""

from pathlib import Path

from wardround_client.home import Home
from wardround_common.config import load_yaml
from wardround_common.errors import VerificationError
from wardround_common.files import write_durably
from wardround_common.identity.keys import load_identity_key, load_public_key
from wardround_common.policy import POLICY_TYPE, Policy, open_policy, policy_not_signed
from wardround_common.policy_file import render_policy
from wardround_common.signing import Envelope, public_key_text, sign_document


def load_policy(home: Home) -> Policy:
    """Return the policy as the responsible person signed it.

    Raises:
        ConfigError: policy.yaml cannot be read.
        PolicyError: it is not signed, or was changed since.
        VerificationError, ProtocolError: the signature is another person's, or damaged.
    """
    written = load_yaml(home.policy, Policy)
    try:
        data = home.policy_signature.read_bytes()
    except OSError:
        raise policy_not_signed("policy.yaml is not signed by the responsible person") from None
    return open_policy(Envelope.from_bytes(data), written, load_public_key(home.approver))


def sign_policy(home: Home, approver_key: Path) -> Policy:
    """Sign policy.yaml as it stands now and return it.

    Raises:
        VerificationError: not the key of the responsible person.
        ConfigError, StorageError: a file cannot be read or written.
    """
    policy = load_yaml(home.policy, Policy)
    person = load_identity_key(approver_key)
    if public_key_text(person.public_key()) != load_public_key(home.approver):
        raise VerificationError(
            "policy-wrong-key",
            "this is not the key of the responsible person that was recorded at enrolment",
            next_step="use the key file that `wardround client enroll --approver-key` made, or hand the role over: "
            "wardround client policy hand-over",
        )
    write_durably(home.policy_signature, sign_document(policy.to_bytes(), POLICY_TYPE, person).to_bytes())
    return policy


def hand_over(home: Home, *, old_key: Path | None, new_key: Path) -> Policy:
    """Make `new_key` the responsible person's, sign the policy with it, and return the policy.

    Every approver entry with the old key gets the new one; other approvers stay. `old_key` None means
    that it is lost or stolen: whoever controls this machine decides, and earlier approvals stop counting.

    Raises:
        VerificationError: `old_key` is not the present one.
        ConfigError, StorageError: a file cannot be read or written.
    """
    old = load_public_key(home.approver)
    if old_key is not None:
        sign_policy(home, old_key)  # proves that the present owner does this, over the present file
    new = public_key_text(load_identity_key(new_key).public_key())
    policy = load_yaml(home.policy, Policy)
    approvers = {name: new if key == old else key for name, key in policy.approvers.items()}
    changed = policy.model_copy(update={"approvers": approvers})
    # The signature first disappears: a crash in between leaves a policy that counts for nothing.
    home.policy_signature.unlink(missing_ok=True)
    write_durably(home.policy, render_policy(changed).encode())
    write_durably(home.approver, new.encode() + b"\n")
    return sign_policy(home, new_key)
