import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from wardround_common.audit.framing import SegmentRewrap
from wardround_common.audit.requests import (
    Acknowledgement,
    RewrapRequest,
    ShredRequest,
    open_acknowledgement,
    sign_acknowledgement,
)
from wardround_common.errors import ProtocolError, VerificationError
from wardround_common.signing import public_key_text

KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
DIGEST = "sha256:" + "0" * 64
SAID = Acknowledgement(log="log", segment="00" * 8, opened=DIGEST, entries=3, reviewer="board")


def test_an_acknowledgement_comes_back():
    envelope = sign_acknowledgement(SAID, KEY)
    assert open_acknowledgement(envelope, "board", public_key_text(KEY.public_key()), log="log") == SAID


@pytest.mark.parametrize("change", [{"reviewer": "other"}, {"log": "other"}])
def test_an_acknowledgement_for_something_else_is_refused(change):
    envelope = sign_acknowledgement(SAID.model_copy(update=change), KEY)
    with pytest.raises(VerificationError) as caught:
        open_acknowledgement(envelope, "board", public_key_text(KEY.public_key()), log="log")
    assert caught.value.code == "acknowledgement-foreign"


def test_an_acknowledgement_by_another_key_is_refused():
    envelope = sign_acknowledgement(SAID, Ed25519PrivateKey.generate())
    with pytest.raises(VerificationError):
        open_acknowledgement(envelope, "board", public_key_text(KEY.public_key()), log="log")


def test_requests_have_one_encoding():
    record = SegmentRewrap(wrap=DIGEST, recipients=(DIGEST,))
    for request in (
        RewrapRequest(log="log", segment="00" * 8, wrap=b"age", record=record),
        ShredRequest(log="log", segment="00" * 8, reason="erasure-request"),
    ):
        assert type(request).from_bytes(request.to_bytes()) == request
    with pytest.raises(ProtocolError):
        ShredRequest.from_bytes(b'{"format":"wardround/shred-request/1","log":"l","reason":"mood","segment":"00"}')
