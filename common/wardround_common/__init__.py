"""What both sides of wardround agree on, and the compliance reviewer's whole tool.

Start at `study` (what is signed), `policy` (what a hospital allows), `privacy` (mechanism records
and their price) and `audit` (the log, its verifier and reader). Nothing here imports torch or flwr.
"""

__version__ = "0.1.0"
