"""`wardround server audit submit`."""

from peers.federation import ok, wardround

from wardround_common.audit.requests import ShredRequest


def test_a_request_is_handed_in(tmp_path):
    recipient = ok("audit", "keygen", tmp_path / "reviewer.key")["recipient"]
    home = tmp_path / "server"
    made = ok(
        "server",
        "init",
        "--home",
        home,
        "--name",
        "operator",
        "--address",
        "localhost:8443",
        "--reviewer",
        f"a={recipient}",
    )
    request = tmp_path / "shred.json"
    request.write_bytes(ShredRequest(log=made["log"], segment="00" * 8, reason="erasure-request").to_bytes())
    (name,) = ok("server", "audit", "submit", request, "--home", home)["submitted"]
    assert (home / "state/audit-inbox" / name).read_bytes() == request.read_bytes()
    assert (
        wardround("server", "audit", "submit", tmp_path / "none", "--home", home, "--json").error
        == "audit-request-missing"
    )
    request.write_text("{}")
    assert wardround("server", "audit", "submit", request, "--home", home, "--json").code == 1
