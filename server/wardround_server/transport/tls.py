"""TLS credentials, and who is at the other end.

Rules (docs/spec/identity.md, "On every call").
1. The negotiated version is TLS 1.3, whatever the library would accept.
2. The peer presented a certificate; it is known by the SHA-256 of its DER, never by a name.
3. The registry says what that certificate may do.
gRPC has verified before that our authority issued it and that it is in its validity.
"""

import threading
from collections.abc import Callable, Iterable, Mapping

import grpc

from wardround_common.errors import VerificationError
from wardround_common.identity.authority import certificate_digest, parse_certificate
from wardround_common.wire import failures

TLS_VERSION = b"TLSv1.3"
"""gRPC's name of the one version that is spoken."""

AuthContext = Mapping[str, Iterable[bytes]]
"""What gRPC says about the connection's peer."""


def server_credentials(current: Callable[[], tuple[bytes, bytes]], authority: bytes) -> grpc.ServerCredentials:
    """Return credentials that demand a client certificate of `authority` (PEM).

    Args:
        current: returns (key, certificate) in PEM; asked at every handshake, so that a renewed
            certificate is used without a restart.
        authority: PEM certificate of the only authority that is trusted.
    """
    given, lock = current(), threading.Lock()

    def configuration(pair: tuple[bytes, bytes]) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([pair], authority)

    def changed() -> grpc.ServerCertificateConfiguration | None:
        # None for "as before": gRPC replaces its handshakers under those that are at work when it is given another
        # configuration, and now and then the whole process dies of it (grpcio 1.85.1: after a thousand handshakes).
        nonlocal given
        with lock:
            now = current()
            if now == given:
                return None
            given = now
        return configuration(now)

    first = configuration(given)
    return grpc.dynamic_ssl_server_credentials(first, changed, require_client_authentication=True)  # type: ignore[arg-type]


def require_tls13(context: AuthContext) -> None:
    """Return if the connection is TLS 1.3.

    Raises:
        EnrolmentError: it is older.
    """
    if list(context.get("ssl_tls_version", ())) != [TLS_VERSION]:
        raise failures.tls_too_old("only TLS 1.3 is accepted")


def peer_fingerprint(context: AuthContext) -> str:
    """Return `sha256:…` of the caller's certificate.

    Raises:
        EnrolmentError: there is none, or it cannot be read.
    """
    try:
        (pem,) = context.get("x509_pem_cert", ())
        return certificate_digest(parse_certificate(pem))
    except (ValueError, VerificationError):
        raise failures.certificate_unknown("the connection has no readable client certificate") from None
