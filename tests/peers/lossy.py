"""A whole study in a network namespace that loses packets; run by `unshare -n python -m peers.lossy FOLDER`.

Prints how many packets were lost, as the last word.
"""

import json
import subprocess
import sys
from pathlib import Path

from peers.light import workshop

PERCENT = 30


def main(folder: Path) -> None:
    """Prepare undisturbed, then lose packets until the study is released."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with workshop(folder) as shop, shop.light(3, rounds=1) as light:
        port = light.fed.address.rpartition(":")[2]
        rules = "".join(
            f"  tcp {end} {port} numgen random mod 100 < {PERCENT} counter drop\n" for end in ("dport", "sport")
        )
        table = (
            f"table inet faults {{\n chain in {{\n  type filter hook input priority 0; policy accept;\n{rules} }}\n}}\n"
        )
        subprocess.run(["nft", "-f", "-"], input=table, text=True, check=True)
        light.start()
        light.finish(patience_s=200)
        lost = _lost()
        subprocess.run(["nft", "flush", "ruleset"], check=True)
        light.judge()
        print("lost", lost)


def _lost() -> int:
    listed = json.loads(subprocess.run(["nft", "-j", "list", "ruleset"], capture_output=True, check=True).stdout)
    parts = [part for item in listed["nftables"] for part in item.get("rule", {}).get("expr", ())]
    return sum(part["counter"]["packets"] for part in parts if "counter" in part)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
