"""Secure aggregation: the server learns the sum of the survivors' updates and nothing else.

`member.Member` is a hospital's side, `coordinator` the server's; `fixed` turns updates into ring
elements and `sums` adds them up. None of them does I/O beyond reading vector files, and none imports
torch or flwr. Protocol and byte formats: docs/spec/secagg.md.
"""
