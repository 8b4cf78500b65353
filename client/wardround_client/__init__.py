"""The hospital's side: daemon, policy gate, ledger, data, training.

The daemon shell (transport, gate, ledger) never imports torch; `training` does.
"""
