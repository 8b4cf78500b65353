"""Sealing an update to the server's study key (docs/spec/envelope.md).

`update` is the file format and what others use; `hpke` wraps its key, `stream` encrypts its body.
"""
