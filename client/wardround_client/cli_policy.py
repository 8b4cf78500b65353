"""`wardround client policy`: what the responsible person signs.

Rules. Private keys are files outside the home, never arguments; the daemon needs none of them.
"""

from pathlib import Path
from typing import Annotated

import typer

from wardround_client.cli_options import ApproverKey, AsJson, HomeOption, Yes
from wardround_client.home import Home
from wardround_client.policies import hand_over, sign_policy
from wardround_common.errors import PolicyError
from wardround_common.identity.keys import load_public_key, new_identity_key, write_private_key
from wardround_common.output import Output
from wardround_common.policy import Policy
from wardround_common.signing import fingerprint, public_key_text

policy_app = typer.Typer(
    name="policy",
    help="The hospital's policy: sign it, name approvers, hand the responsibility over.",
    no_args_is_help=True,
    add_completion=False,
)


@policy_app.command()
def sign(approver_key: ApproverKey, home: HomeOption = Path(), as_json: AsJson = False) -> None:
    """Sign policy.yaml as it stands now. Nothing is trained under a policy that is not signed.

    A change of the policy ends earlier approvals: approve the studies that go on once more.

    Example: wardround client policy sign --home client --approver-key approver.key
    """
    out, paths = Output(as_json=as_json), Home(home)
    _signed(out, sign_policy(paths, approver_key), paths)


@policy_app.command()
def keygen(
    file: Annotated[Path, typer.Argument(help="New key file (secret, 0600), outside the home.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Make a key for a person who may approve studies; put its public half under approvers in policy.yaml.

    Example: wardround client policy keygen deputy.key
    """
    out, key = Output(as_json=as_json), new_identity_key()
    write_private_key(file, key)
    public = public_key_text(key.public_key())
    out.say(f"wrote {file}; keep it on a medium of that person")
    out.say(f"public key {public}")
    out.result({"file": str(file), "public": public, "fingerprint": fingerprint(public)})


@policy_app.command("hand-over")
def hand_over_(
    to: Annotated[Path, typer.Option("--to", help="The new responsible person's key file.", show_default=False)],
    approver_key: Annotated[
        Path | None, typer.Option("--approver-key", help="The present responsible person's key.", show_default=False)
    ] = None,
    lost: Annotated[bool, typer.Option("--lost", help="The present key is lost or stolen.")] = False,
    yes: Yes = False,
    home: HomeOption = Path(),
    as_json: AsJson = False,
) -> None:
    """Make another key the responsible person's, and sign the policy with it.

    Example: wardround client policy hand-over --to new.key --approver-key old.key --home client
    """
    out, paths = Output(as_json=as_json), Home(home)
    if approver_key is None and not lost:
        raise PolicyError(
            "hand-over-by-whom",
            "the responsibility is handed over by the person who has it",
            next_step="give that person's key with --approver-key FILE; if it is lost or stolen, say --lost",
        )
    if lost and not yes and not typer.confirm(f"Replace {fingerprint(load_public_key(paths.approver))}?"):
        raise PolicyError("not-approved", "nothing was handed over", next_step="nothing was changed")
    _signed(out, hand_over(paths, old_key=None if lost else approver_key, new_key=to), paths)
    out.say("approvals that the old key gave count no longer: approve the studies that go on once more")


def _signed(out: Output, policy: Policy, paths: Home) -> None:
    signer = fingerprint(load_public_key(paths.approver))
    out.say(f"signed policy.yaml ({policy.sha256()}) by {signer}")
    out.say(f"approvers: {', '.join(sorted(policy.approvers)) or 'none: nobody can approve a study'}")
    out.say("a running client uses it from its next start")
    out.result({"policy": policy.sha256(), "signer": signer, "approvers": dict(policy.approvers)})
