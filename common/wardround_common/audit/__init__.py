"""The audit trail: format, verifier, reader and reports; the reviewer's whole tool.

`events` (what is logged), `note` and `tiles` (C2SP formats), `seal` (encryption to reviewers),
`verify` and `reader`. The server's writer is `wardround_server.auditlog`.
"""
