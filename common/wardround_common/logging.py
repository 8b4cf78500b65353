"""Log lines: structured, on stderr, for people or as JSON, and without secrets.

Rules.
- One event name and named values: `log.info("round answered", study=..., round=3)`. No patient data,
  counts of records or free text from data files; that is the caller's duty, no filter can know it.
- What looks like a secret is replaced, whatever its key: private keys, age identities, passwords in
  addresses; and so is every value whose key says that it is one. Bytes are shown by length only.
- One event is one line, whatever text a peer sent (a traceback of ours excepted).
- Other libraries' log lines go the same way, from level warning on.

    >>> configure_logging(format="json", level="info")  # doctest: +SKIP
    >>> get_logger("client").info("connected", server="h:1")  # doctest: +SKIP
    {"event": "connected", "server": "h:1", "level": "info", "logger": "wardround.client", "timestamp": "..."}
"""

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Literal, TextIO

import structlog

REDACTED = "[redacted]"

_SECRET_KEY = re.compile(
    r"(secret|passw|passphrase|token|credential|private|authorization|cookie|seed|(^|_)key($|_bytes$)|identity_file)",
    re.I,
)
_SECRET_VALUE = re.compile(
    r"AGE-SECRET-KEY-[A-Z0-9-]+|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(-----END [A-Z ]*PRIVATE KEY-----|$)"
    r"|(?<=://)[^/\s@]+(?=@)"
)
_MAX_DEPTH = 6  # log values are flat; deeper ones are cut instead of walked


def configure_logging(*, format: Literal["human", "json"], level: str, stream: TextIO | None = None) -> None:
    """Send all log lines of this process to `stream` (stderr).

    Args:
        format: lines for people, or one JSON object a line.
        level: least level shown: debug, info, warning or error.
        stream: where to; stderr if not given.
    """
    target = stream or sys.stderr
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        redact,
    ]
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer(sort_keys=False)
        if format == "json"
        else structlog.dev.ConsoleRenderer(colors=target.isatty(), exception_formatter=structlog.dev.plain_traceback)
    )
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer]
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("wardround").setLevel(level.upper())


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Return the logger `wardround.<name>`."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(f"wardround.{name}")
    return logger


def redact(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace what looks like a secret in a log event (a structlog processor)."""
    for key, value in event.items():
        event[key] = _redacted(key, value, 0)
    return event


def _redacted(key: str, value: Any, depth: int) -> Any:
    if _SECRET_KEY.search(key) and not isinstance(value, bool | int | float | None):
        return REDACTED
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if isinstance(value, str):
        return _printable(_SECRET_VALUE.sub(REDACTED, value), keep="\n\t" if key == "exception" else "")
    if depth >= _MAX_DEPTH:
        return "..."
    if isinstance(value, Mapping):
        return {str(k): _redacted(str(k), v, depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_redacted(key, v, depth + 1) for v in value]
    if isinstance(value, bool | int | float | None):
        return value
    return value if key == "_record" else _printable(_SECRET_VALUE.sub(REDACTED, str(value)))


def _printable(text: str, keep: str = "") -> str:
    """Keep a peer's text from starting a line of its own or moving the cursor."""
    return "".join(c if c.isprintable() or c in keep else "?" for c in text)
