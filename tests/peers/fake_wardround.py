"""A stand-in for the `wardround` command, so that the demo's harness can be tested without training.

It answers `--json` and writes the files that the harness edits, as the real commands do; daemons
write their status files and wait for SIGTERM. `FAIL` in the home's name makes a step go wrong.
"""

import json
import signal
import socket
import sys
import threading
import time
from pathlib import Path

KEY = "ed25519:" + "A" * 43 + "="


def option(name):
    return Path(sys.argv[sys.argv.index(name) + 1])


def say(**document):
    print(json.dumps(document))
    sys.exit(0)


def fail(code, message):
    print(json.dumps({"error": {"code": code, "message": message, "next_step": "do this instead"}}))
    sys.exit(1)


def own_key(home):
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from wardround_common.signing import public_key_text

    seed = home.name.encode().ljust(32, b".")[:32]
    return public_key_text(Ed25519PrivateKey.from_private_bytes(seed).public_key())


def keygen():
    Path(sys.argv[3]).write_text("AGE-SECRET-KEY-1X\n")
    say(recipient="age1" + "q" * 58)


def init():
    home = option("--home")
    home.mkdir(parents=True, exist_ok=True)
    (home / "address").write_text(str(option("--address")))
    say(identity=own_key(Path("operator")), log="wardround/operator+00000000+AQ==")


def invite():
    option("--out").write_text("{}")
    say(site=sys.argv[3])


def enroll():
    from wardround_client import config as client_config
    from wardround_common.policy_file import cautious_policy, render_policy

    home = option("--home")
    home.mkdir(parents=True)
    key = own_key(home)
    policy = cautious_policy(operator=KEY, log="l", members={home.name: key}, approver=key)
    (home / "policy.yaml").write_text(render_policy(policy))
    config = client_config.ClientConfig(site=home.name, server="127.0.0.1:1", datasets={})
    (home / "client.toml").write_text(client_config.render(config))
    option("--approver-key").write_text("secret")
    say(identity=key, site=home.name)


def new():
    from wardround_common.study_file import render_study_file
    from wardround_common.study_template import template_study

    members = ("general-medicine", "mother-and-child", "trauma")
    option("--out").write_text(render_study_file(template_study(name="demo", members=members, model="minilm")))
    say(file=str(option("--out")))


def propose():
    from wardround_common.config import load_yaml
    from wardround_common.study_file import StudyFile

    load_yaml(Path(sys.argv[4]), StudyFile)
    (option("--home") / "proposed").write_text("")
    say(study="sha256:" + "0" * 64)


def approve():
    home = option("--home")
    tries = home / "tries"
    tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
    if (home / "REFUSE").exists():
        fail("policy-refused", "policy refuses study demo")
    if len(tries.read_text()) < 2:
        fail("study-unknown", "no study called demo")
    say(signed=True)


def daemon(states, listen=None):
    done = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: done.set())
    home = option("--home")
    (home / "state").mkdir(exist_ok=True)
    server = socket.create_server((listen[0], int(listen[1]))) if listen else None
    for state in states:
        (home / "state" / "status.json").write_text(json.dumps(state))
        time.sleep(0.1)
    if states[-1].get("phase") == "die":
        print("the port is in use", file=sys.stderr)
        sys.exit(1)
    done.wait()
    if server:
        server.close()


def server_start():
    home = option("--home")
    address = (home / "address").read_text().split(":")
    phase = "failed" if (home / "FAIL").exists() else "completed"
    states = [{"phase": "running", "round": r, "rounds": 2} for r in (1, 2)]
    daemon([*states, {"phase": phase, "round": 2, "rounds": 2, "message": "because"}], address)


def client_start():
    phase = "die" if (option("--home") / "DIE").exists() else "done"
    daemon([{"phase": "training", "round": 1, "rounds": 2}, {"phase": phase, "round": 2, "rounds": 2}])


COMMANDS = {
    ("audit", "keygen"): keygen,
    ("server", "init"): init,
    ("server", "invite"): invite,
    ("server", "start"): server_start,
    ("client", "enroll"): enroll,
    ("client", "start"): client_start,
    ("client", "approve"): approve,
}

if __name__ == "__main__":
    if sys.argv[1:4] == ["client", "policy", "sign"]:
        say(policy="sha256:" + "0" * 64)
    elif sys.argv[1:3] == ["server", "study"]:
        {"new": new, "propose": propose}[sys.argv[3]]()
    else:
        COMMANDS[sys.argv[1], sys.argv[2]]()
