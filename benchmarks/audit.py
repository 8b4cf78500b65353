"""`./run bench audit`: every figure of the audit trail, part by part."""

from collections.abc import Iterator

from benchmarks import audit_log, audit_report
from benchmarks.harness import Figure, Options, main

PARTS = (audit_log.measure, audit_report.measure)


def measure(options: Options) -> Iterator[Figure]:
    """Yield the figures of the audit trail."""
    for part in PARTS:
        yield from part(options)


if __name__ == "__main__":
    main("audit", measure)
