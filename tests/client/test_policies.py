"""The policy counts only as its owner signed it, and the ownership can change hands."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from peers.federation import ok, wardround

from wardround_client.home import Home
from wardround_client.policies import hand_over, load_policy, sign_policy
from wardround_common.errors import PolicyError, VerificationError
from wardround_common.identity.keys import load_public_key, write_private_key, write_public_key
from wardround_common.policy_file import cautious_policy, render_policy
from wardround_common.signing import public_key_text

OPERATOR = public_key_text(Ed25519PrivateKey.generate().public_key())


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "approver.key"
    write_private_key(path, Ed25519PrivateKey.generate())
    return path


@pytest.fixture
def home(tmp_path: Path, key: Path) -> Home:
    from wardround_common.identity.keys import load_identity_key

    home = Home(tmp_path / "home")
    home.root.mkdir()
    person = load_identity_key(key)
    write_public_key(home.approver, person)
    policy = cautious_policy(
        operator=OPERATOR, log="l+01020304+AQ==", members={}, approver=public_key_text(person.public_key())
    )
    home.policy.write_text(render_policy(policy))
    return home


def other_key(folder: Path, name: str = "other.key") -> Path:
    write_private_key(folder / name, Ed25519PrivateKey.generate())
    return folder / name


def test_an_unsigned_policy_does_not_count(home: Home) -> None:
    with pytest.raises(PolicyError) as caught:
        load_policy(home)
    assert caught.value.code == "policy-not-signed"


def test_a_signed_policy_counts_until_it_is_edited(home: Home, key: Path) -> None:
    signed = sign_policy(home, key)
    assert load_policy(home) == signed
    home.policy.write_text(home.policy.read_text().replace("max_rounds: 100", "max_rounds: 101"))
    with pytest.raises(PolicyError) as caught:
        load_policy(home)
    assert caught.value.code == "policy-not-signed"
    assert sign_policy(home, key).max_rounds == 101
    assert load_policy(home).max_rounds == 101


def test_comments_and_layout_are_not_the_policy(home: Home, key: Path) -> None:
    sign_policy(home, key)
    home.policy.write_text("# a note\n" + home.policy.read_text())
    load_policy(home)


def test_another_persons_signature_does_not_count(home: Home, key: Path, tmp_path: Path) -> None:
    with pytest.raises(VerificationError) as caught:
        sign_policy(home, other_key(tmp_path))
    assert caught.value.code == "policy-wrong-key"
    sign_policy(home, key)
    home.approver.unlink()
    write_public_key(home.approver, Ed25519PrivateKey.generate())
    with pytest.raises(VerificationError):
        load_policy(home)


def test_handing_over_needs_the_present_owner(home: Home, key: Path, tmp_path: Path) -> None:
    stranger, new = other_key(tmp_path), other_key(tmp_path, "new.key")
    with pytest.raises(VerificationError):
        hand_over(home, old_key=stranger, new_key=new)
    changed = hand_over(home, old_key=key, new_key=new)
    assert set(changed.approvers.values()) == {load_public_key(home.approver)}
    assert load_policy(home) == changed
    with pytest.raises(VerificationError):
        sign_policy(home, key)


def test_a_lost_key_is_replaced_and_its_approvals_end(home: Home, key: Path, tmp_path: Path) -> None:
    before, new = sign_policy(home, key), other_key(tmp_path)
    ok("client", "policy", "hand-over", "--lost", "--yes", "--to", new, "--home", home.root)
    after = load_policy(home)
    assert after.sha256() != before.sha256()  # approvals name the policy's digest
    assert set(before.approvers.values()).isdisjoint(after.approvers.values())


def test_the_commands_refuse_what_nobody_decided(home: Home, key: Path, tmp_path: Path) -> None:
    outcome = wardround("client", "policy", "hand-over", "--to", other_key(tmp_path), "--home", home.root, "--json")
    assert (outcome.code, outcome.error) == (1, "hand-over-by-whom")
    outcome = wardround("client", "policy", "sign", "--home", home.root, "--approver-key", key, "--json")
    assert outcome.code == 0, outcome.out
    made = ok("client", "policy", "keygen", tmp_path / "deputy.key")
    assert made["public"].startswith("ed25519:")
    assert (tmp_path / "deputy.key").stat().st_mode & 0o777 == 0o600
