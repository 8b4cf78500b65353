"""The hospital's side of the wire: outbound connections only, no torch.

Start with `session` (work in, answers out, for ever) and `connection` (address, certificates,
proxy); `calls` are the blocking ones, `blobs` moves files. docs/spec/wire.md is the protocol.
"""
