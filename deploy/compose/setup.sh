#!/bin/sh
# Founds the federation of compose.yaml: reviewer's key, server, invites, enrolment. Runs once, when the images are built.
# What follows is for people: data, policies, a study, approvals (docs/deploying.md).
set -eu
cd "$(dirname "$0")"
compose=${COMPOSE:-docker compose}
address=${ADDRESS:-server:8443} # of the certificate: the service's name
listen=${LISTEN:-0.0.0.0:8443}  # on every network
hospitals=${HOSPITALS:-north-ward south-ward west-ward}
server=/var/lib/wardround/server
client=/var/lib/wardround/client

# Stands for what people carry between machines: the reviewer's key, invites, approvers' keys.
mkdir -p handover data models
chmod 1777 handover

run() { $compose run --rm --no-deps --volume "$PWD/handover:/handover" "$@"; }
set_keys() { # SERVICE FILE SED-EXPRESSION...: change keys of a configuration file
  service=$1 file=$2
  shift 2
  run --entrypoint sed "$service" -i "$@" "$file"
}

reviewer=$(run auditor audit keygen /handover/reviewer.key)
run server server init --home $server --name operator --address "$address" --reviewer "board=$reviewer"
set_keys server $server/server.toml -e 's/^# port = 9464/port = 9464/' -e "s/^# listen = .*/listen = \"$listen\"/"
run server server doctor --home $server
$compose up --detach --wait server

for hospital in $hospitals; do
  run server server invite "$hospital" --home $server --out "/handover/$hospital.invite"
  run "$hospital" client enroll "/handover/$hospital.invite" --home $client --approver-key "/handover/$hospital-approver.key"
  set_keys "$hospital" $client/client.toml -e 's/^# port = 9464/port = 9464/'
done

echo "next: give each hospital its approver's key from handover/, then empty that folder; docs/deploying.md goes on"
