#!/bin/sh
# Last step of a role's environment: pip and setuptools leave it, a CycloneDX SBOM of what is left comes into it.
set -eu
environment=${1:-/opt/wardround}
cyclonedx=${2:-/opt/sbom/bin/cyclonedx-py}

"$environment/bin/python" -m pip uninstall --quiet --yes setuptools pip
"$cyclonedx" environment --output-reproducible --output-format JSON \
  --output-file "$environment/sbom.cdx.json" "$environment/bin/python"
