"""The two files that a person edits after enrolment: `client.toml` and `policy.yaml`, with comments.

Rules. Written once, with the stamp of the home's format; a file that exists is never touched. The policy starts
cautious: it pins the operator and the log from the operator's verified statement and this site itself, and allows no
model, no data set and no other member until a person adds them.
"""

from pathlib import Path

from wardround_client import config as client_config
from wardround_client.enrolment import Enrolled
from wardround_client.home import Home
from wardround_common.files import write_durably
from wardround_common.homeformat import stamp
from wardround_common.identity.keys import load_public_key
from wardround_common.policy_file import cautious_policy, render_policy


def write_site_files(root: Path, enrolled: Enrolled, *, proxy: str | None) -> None:
    """Write `client.toml` and `policy.yaml` of a freshly enrolled home."""
    home, operator = Home(root), enrolled.operator
    stamp(root, "client")
    if not home.config.exists():
        config = client_config.ClientConfig(site=enrolled.site, server=enrolled.address, proxy=proxy)
        write_durably(home.config, client_config.render(config).encode(), mode=0o600)
    if not home.policy.exists():
        assert operator.log is not None  # `enrol` accepts only an operator's binding
        members = {enrolled.site: enrolled.identity}
        approver = load_public_key(home.approver)
        policy = cautious_policy(operator=operator.identity, log=operator.log, members=members, approver=approver)
        write_durably(home.policy, render_policy(policy).encode())
