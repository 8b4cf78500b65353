"""`./run demo`: one server and three hospitals as four processes on this machine, on public data.

Not part of the installed package: the harness that plays operator, hospitals and reviewer.
"""
