"""The server's side of the wire: mutual TLS, sessions, blobs, and Flower's `Grid` on top.

Start with `grid` (what a strategy sees) and `hub` (the bridge between the strategy's thread and the
network's); `service` speaks the protocol of docs/spec/wire.md, `serve` starts and stops it.
"""
