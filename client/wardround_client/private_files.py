"""Which files of a hospital's home are secrets, and which decide."""

from wardround_client.home import Home
from wardround_common.permissions import require_private

SECRETS = ("keys/*.key", ".enrolling/keys/*.key", "state/sealed/*", "withdrawn/*.txt")
DECISIONS = ("keys", "state", "approvals", "studies", "policy.yaml", "policy.sig", "approver.pub", "operator.json")


def require_private_home(home: Home) -> None:
    """Return if nobody else can read this home's secrets or change its decisions.

    Raises:
        ConfigError: somebody can.
    """
    require_private(home.root, secrets=SECRETS, decisions=DECISIONS)
