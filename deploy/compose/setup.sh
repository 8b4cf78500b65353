#!/bin/sh
# Founds the federation of compose.yaml: reviewer's key, server, invites, enrolment. Runs once, with the server's image
# and the client's built. What follows is for people: policies, a study, approvals (docs/deploying.md).
set -eu
cd "$(dirname "$0")"
compose=${COMPOSE:-docker compose}
address=${ADDRESS:-server:8443}
listen=${LISTEN:-0.0.0.0:8443}
hospitals=${HOSPITALS:-north-ward south-ward west-ward}
server=/var/lib/wardround/server
client=/var/lib/wardround/client

# Stands for what people carry: keys and invites go through this folder. Remove what is in it when you are done.
mkdir -p handover data models
chmod 1777 handover

run() { $compose run --rm --no-deps --volume "$PWD/handover:/handover" "$@"; }

run auditor audit keygen /handover/reviewer.key
reviewer=$(sed -n 's/^# public key: //p' handover/reviewer.pub 2>/dev/null || true)
