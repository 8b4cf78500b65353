"""Frozen documents and their one byte representation.

Rules. A document has exactly one encoding: UTF-8 JSON, keys sorted by code point, no white space,
no NaN or infinity, floats in Python's shortest round-trip form, bytes as padded base64url. Digests
and signatures are always taken over those bytes, so re-encoding what was decoded must give the same
bytes back; anything else is refused. Unknown keys, duplicate keys and oversized input are refused before any field is
looked at. Not done here: signatures (see `signing`).

    >>> class Point(Document):
    ...     x: int
    >>> Point(x=1).to_bytes()
    b'{"x":1}'
    >>> Point.from_bytes(b'{"x":1}').x
    1
"""

import hashlib
import json
import math
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from wardround_common.errors import ProtocolError

MAX_DOCUMENT_BYTES = 1 << 20
"""No document of ours comes near 1 MiB (a 100-member study is about 60 kB); more is an attack."""

Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
"""`sha256:` and 64 lower-case hex digits."""

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,47}$")]
"""Name of a site, study, reviewer or data set: lower-case letters, digits and dashes."""

_BREAKS = r"\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069"  # controls, line separators, bidi overrides
Line = Annotated[str, StringConstraints(pattern=f"^[^{_BREAKS}]*$", max_length=300)]
"""One line of text for people; nothing in it can move a cursor or reorder what a person reads before signing."""


class Document(BaseModel):
    """Base of every frozen value that is signed, sent or stored."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, ser_json_bytes="base64", val_json_bytes="base64"
    )

    __slots__ = ("_digest",)  # computed once; no field, so neither copies nor comparisons carry it

    def to_bytes(self) -> bytes:
        """Return the document's one encoding."""
        return canonical_json(self.model_dump(mode="json"))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Decode `data`.

        Raises:
            ProtocolError: too large, not JSON, not this document, or not in canonical form.
        """
        parse_json(data)
        try:
            document = cls.model_validate_json(data)
        except ValidationError as error:
            raise ProtocolError(
                "document-invalid",
                f"not a valid {cls.__name__}: {first_problem(error)}",
                next_step="check that both sides run the same wardround version",
            ) from None
        if document.to_bytes() != data:
            raise ProtocolError(
                "document-not-canonical",
                f"this {cls.__name__} is not in canonical form",
                next_step="the sender must encode documents as docs/spec/documents.md says",
            )
        return document

    def sha256(self) -> str:
        """Return `sha256:…` over the canonical bytes."""
        digest: str | None = getattr(self, "_digest", None)
        if digest is None:
            digest = sha256_digest(self.to_bytes())
            object.__setattr__(self, "_digest", digest)
        return digest


def canonical_json(value: Any) -> bytes:
    """Encode a JSON value canonically (see the module's rules)."""
    return _ENCODER.encode(value).encode()


def sha256_digest(data: bytes) -> str:
    """Return `sha256:` and the hex digest of `data`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def parse_json(data: bytes, *, limit: int = MAX_DOCUMENT_BYTES) -> Any:
    """Parse hostile JSON: bounded, without duplicate keys, NaN or infinity.

    Raises:
        ProtocolError: with the reason.
    """
    if len(data) > limit:
        raise _malformed(f"{len(data)} bytes where at most {limit} are allowed")
    try:
        value = _DECODER.decode(data.decode())
        if b"\\ud" in data.lower():  # half a surrogate pair is no text, and fails where it is printed
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except RecursionError:
        raise _malformed("nested too deeply") from None
    except ValueError as error:  # also UnicodeDecodeError and JSONDecodeError
        raise _malformed(str(error).splitlines()[0]) from None


def first_problem(error: ValidationError) -> str:
    """Return pydantic's first finding as `field: reason`, without the offending value."""
    problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
    # An unknown key's name comes from the sender: cut it and keep it on one line.
    where = ".".join(str(part)[:60] for part in problem["loc"])[:200] or "document"
    return "".join(c if c.isprintable() else "?" for c in f"{where}: {problem['msg']}")


def _malformed(why: str) -> ProtocolError:
    return ProtocolError(
        "document-malformed",
        f"malformed document: {why}",
        next_step="discard it; if it came from a peer, compare wardround versions",
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("duplicate key")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not allowed")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):  # 1e999 is valid JSON, and infinity in Python
        raise ValueError("number out of range")
    return value


# Made once: a reviewer decodes and encodes a hundred thousand small documents.
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite_float)
