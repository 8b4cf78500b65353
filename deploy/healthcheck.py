#!/usr/bin/env python3
"""Exit 0 if the daemon on this machine says that it is healthy, else 1 with what it says.

It asks 127.0.0.1, where `[monitor] port` of server.toml or client.toml makes the daemon answer (docs/deploying.md).
Usage: healthcheck [PORT]
"""

import http.client
import sys

PORT = 9464
TIMEOUT_S = 5.0


def check(port: int) -> str:
    """Return "" if the daemon is healthy, else why not."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/healthz")
        answer = connection.getresponse()
        text = answer.read(200).decode(errors="replace").strip()
    except (OSError, http.client.HTTPException) as error:
        return f"no answer on port {port} ({type(error).__name__}); does the configuration set [monitor] port = {port}?"
    finally:
        connection.close()
    return "" if answer.status == 200 else text


if __name__ == "__main__":
    found = check(int(sys.argv[1]) if len(sys.argv) > 1 else PORT)
    if found:
        print(found, file=sys.stderr)
    sys.exit(1 if found else 0)
