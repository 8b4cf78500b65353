"""The hospital's side: daemon, policy gate, ledger, data, training.

The daemon shell (transport, gate, ledger) never imports torch; `training` does.
"""

# Before grpc or flwr is imported by any module of this role: gRPC reads its environment once (TLS 1.3 only).
from wardround_common.wire import settings as settings
