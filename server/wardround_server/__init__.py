"""The operator's side: transport, rounds, audit log, release.

`transport` is the gRPC service and Flower's `Grid` over it, `rounds` the strategy and its durable
state, `auditlog` the log's only writer, `release` what leaves the federation. No torch here.
"""

# Before grpc or flwr is imported by any module of this role: gRPC reads its environment once (TLS 1.3 only).
from wardround_common.wire import settings as settings
