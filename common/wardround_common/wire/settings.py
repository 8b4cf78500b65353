"""gRPC settings that both sides share, and the environment that must be set before gRPC starts.

Rules (docs/spec/wire.md). TLS 1.3 only: gRPC's Python API has no switch, so the TLS 1.2 cipher
list is reduced to a pre-shared-key suite that cannot be used without a pre-shared key; TLS 1.3
suites are not in that list. The server checks the negotiated version again on every call.
Proxies come from the explicit setting only: gRPC ignores some of the usual environment variables
and would then connect directly, without a word.

Importing this module sets the environment; import it before grpc.
"""

import os

from wardround_common.wire import limits

os.environ["GRPC_SSL_CIPHER_SUITES"] = "PSK-AES128-CBC-SHA"
# Failed handshakes are reported by us, once and in words; gRPC's own lines on stderr would repeat them.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
# Empty, not unset: gRPC would otherwise honour no_proxy and bypass the proxy that client.toml names.
os.environ["no_grpc_proxy"] = ""  # noqa: SIM112
# Flower and Hugging Face's hub client phone home unless told otherwise; set here because both are imported after this.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

Options = tuple[tuple[str, str | int], ...]

_SHARED: Options = (
    ("grpc.max_receive_message_length", limits.MAX_FRAME_BYTES),
    ("grpc.max_send_message_length", limits.MAX_FRAME_BYTES),
    ("grpc.max_metadata_size", limits.MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", 2 * limits.MAX_METADATA_BYTES),
    ("grpc.keepalive_time_ms", int(limits.KEEPALIVE_S * 1_000)),
    ("grpc.keepalive_timeout_ms", int(limits.KEEPALIVE_TIMEOUT_S * 1_000)),
    # Without this gRPC waits a minute for the answer to a ping, whatever the keep-alive time-out says (grpcio 1.85.1).
    ("grpc.http2.ping_timeout_ms", int(limits.KEEPALIVE_TIMEOUT_S * 1_000)),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)


def server_options() -> Options:
    """Return the channel arguments of the server."""
    return (
        *_SHARED,
        ("grpc.http2.min_ping_interval_without_data_ms", int(limits.KEEPALIVE_S * 250)),
        ("grpc.server_handshake_timeout_ms", int(limits.HANDSHAKE_S * 1_000)),
        ("grpc.max_concurrent_streams", limits.MAX_STREAMS_PER_CONNECTION),
        # Two servers must not silently share one port.
        ("grpc.so_reuseport", 0),
    )


def client_options(proxy: str | None) -> Options:
    """Return the channel arguments of a hospital; `proxy` is an `http://` URL or None for direct."""
    routing: Options = (("grpc.enable_http_proxy", 0),) if proxy is None else (("grpc.http_proxy", proxy),)
    return (
        *_SHARED,
        *routing,
        # Each channel has its own connections: back-off is ours, not the process-wide pool's.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_retries", 0),
    )
