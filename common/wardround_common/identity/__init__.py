"""Who is who: keys, certificates, signed bindings and invites.

Start with `invite` for how a hospital joins, `binding` for what ties a long-lived identity to a
transport key, `authority` for certificates. Byte formats: docs/spec/identity.md. Needs neither
torch nor flwr nor gRPC.
"""
