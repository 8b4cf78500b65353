"""Signed statements that tie an identity to a transport key and a name.

Rules (docs/spec/identity.md).
- A binding is signed by the identity that it names: it proves possession, it grants nothing.
- Role and name are inside the signature, so a hospital's binding never counts as the operator's
  nor for another site.
- The operator's binding also names the audit log's key and the certificate authority. A hospital
  accepts it only from the operator identity that it pinned beforehand.
Not done here: which identity belongs to which hospital in the world (people compare fingerprints).

    >>> key = Ed25519PrivateKey.generate()
    >>> transport = ec.generate_private_key(ec.SECP256R1()).public_key()
    >>> open_site_binding(bind_site("north", key, transport), name="north", transport=transport).role
    'hospital'
"""

from typing import Annotated, Literal, Self

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import StringConstraints, model_validator

from wardround_common.documents import Digest, Document, Name
from wardround_common.errors import VerificationError
from wardround_common.identity.keys import transport_digest
from wardround_common.signing import (
    Envelope,
    PublicKey,
    open_envelope,
    parse_public_key,
    public_key_text,
    sign_document,
)

BINDING_TYPE = "application/vnd.wardround.binding+json"
"""DSSE payload type of a `Binding`."""

LogKey = Annotated[str, StringConstraints(pattern=r"^[^\s+]{1,200}\+[0-9a-f]{8}\+[A-Za-z0-9+/=]{1,100}$")]
"""A C2SP verifier key: name, key hash, base64 of type byte and key."""


class Binding(Document):
    """Role, name, identity and transport key of one party; log key and authority of the operator."""

    format: Literal["wardround/binding/1"] = "wardround/binding/1"
    role: Literal["hospital", "operator"]
    name: Name
    identity: PublicKey
    transport: Digest  # of the transport key's SubjectPublicKeyInfo
    log: LogKey | None = None  # operator only: verifier key of the audit log
    authority: Digest | None = None  # operator only: of the authority's certificate (DER)

    @model_validator(mode="after")
    def _operator_says_more(self) -> Self:
        if (self.role == "operator") != (self.log is not None and self.authority is not None):
            raise ValueError("an operator's binding, and only that, names log and authority")
        if self.role == "hospital" and (self.log is not None or self.authority is not None):
            raise ValueError("a hospital's binding names neither log nor authority")
        return self


def bind_site(name: str, identity: Ed25519PrivateKey, transport: ec.EllipticCurvePublicKey) -> Envelope:
    """Return a hospital's signed binding."""
    binding = Binding(
        role="hospital",
        name=name,
        identity=public_key_text(identity.public_key()),
        transport=transport_digest(transport),
    )
    return sign_document(binding.to_bytes(), BINDING_TYPE, identity)


def bind_operator(
    name: str, identity: Ed25519PrivateKey, transport: ec.EllipticCurvePublicKey, *, log: str, authority: str
) -> Envelope:
    """Return the operator's signed binding; `log` is a verifier key, `authority` a certificate digest."""
    binding = Binding(
        role="operator",
        name=name,
        identity=public_key_text(identity.public_key()),
        transport=transport_digest(transport),
        log=log,
        authority=authority,
    )
    return sign_document(binding.to_bytes(), BINDING_TYPE, identity)


def open_site_binding(envelope: Envelope, *, name: str, transport: ec.EllipticCurvePublicKey) -> Binding:
    """Return hospital `name`'s binding if it signed for exactly this transport key.

    Raises:
        VerificationError: signature, role, name or key do not hold.
        ProtocolError: not a binding.
    """
    claimed = Binding.from_bytes(envelope.payload_bytes())
    binding = _opened(envelope, claimed.identity)
    if (binding.role, binding.name) != ("hospital", name):
        raise _does_not_hold(f"it is of {binding.role} {binding.name}, not of hospital {name}")
    if binding.transport != transport_digest(transport):
        raise _does_not_hold("it names another transport key")
    return binding


def open_operator_binding(envelope: Envelope, *, operator: str, authority: str) -> Binding:
    """Return the operator's binding if the pinned identity signed it and it names this authority.

    Args:
        envelope: as received at enrolment.
        operator: the pinned `ed25519:` identity.
        authority: digest of the certificate authority in the invite.

    Raises:
        VerificationError: signature, role or authority do not hold.
        ProtocolError: not a binding.
    """
    binding = _opened(envelope, operator)
    if binding.role != "operator" or binding.identity != operator:
        raise _does_not_hold("it is not the pinned operator's")
    if binding.authority != authority:
        raise _does_not_hold("it names another certificate authority than the invite")
    return binding


def _opened(envelope: Envelope, identity: str) -> Binding:
    return Binding.from_bytes(open_envelope(envelope, BINDING_TYPE, [parse_public_key(identity)]))


def _does_not_hold(why: str) -> VerificationError:
    return VerificationError(
        "binding-wrong",
        f"the signed binding of identity and transport key does not hold: {why}",
        next_step="compare fingerprints with the other side by telephone, then ask for a new invite",
    )
