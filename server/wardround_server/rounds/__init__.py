"""A study's rounds at the server.

`answers` checks one hospital's answer, `aggregate` adds it up, `state` survives a crash, `strategy`
is the Flower `Strategy` that drives them.
"""
