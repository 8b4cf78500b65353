"""Log lines: form, levels and what never gets in."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from wardround_common.logging import REDACTED, configure_logging, get_logger


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield io.StringIO()
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_lines(stream: io.StringIO) -> None:
    configure_logging(format="json", level="info", stream=stream)
    get_logger("client").info("round answered", study="sha256:00", round=3)
    (line,) = lines(stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "round answered",
        "study": "sha256:00",
        "round": 3,
        "level": "info",
        "logger": "wardround.client",
    }


def test_human_lines_are_one_line_each(stream: io.StringIO) -> None:
    configure_logging(format="human", level="info", stream=stream)
    get_logger("client").info("peer said\nerror: all is lost", text="a\x1b[2J\nb")
    (line,) = stream.getvalue().splitlines()
    assert "peer said?error" in line
    assert "\x1b" not in line


def test_levels(stream: io.StringIO) -> None:
    configure_logging(format="json", level="warning", stream=stream)
    get_logger("client").info("no")
    get_logger("client").warning("yes")
    logging.getLogger("grpc").info("no")
    logging.getLogger("grpc").warning("a library's")
    assert [line["event"] for line in lines(stream)] == ["yes", "a library's"]


@pytest.mark.parametrize(
    "value",
    [
        {"private_key": "x7"},
        {"key": "x7"},
        {"mask_key": b"x7"},
        {"seed": [1, "x7"]},
        {"passphrase": "x7"},
        {"token": {"a": "x7"}},
        {"nested": {"deep": [{"client_secret": "x7"}]}},
        {"note": "AGE-SECRET-KEY-1X7 x"},
        {"note": "-----BEGIN PRIVATE KEY-----\nx7\n-----END PRIVATE KEY-----"},
        {"note": "-----BEGIN EC PRIVATE KEY-----\nx7"},
        {"proxy": "http://user:x7@proxy:3128"},
        {"event_bytes": b"x7"},
    ],
    ids=str,
)
def test_secrets_are_redacted(stream: io.StringIO, value: dict[str, Any]) -> None:
    configure_logging(format="json", level="info", stream=stream)
    get_logger("client").info("event", **value)
    text = stream.getvalue()
    assert "x7" not in text.lower()
    assert REDACTED in text or "bytes>" in text


def test_secrets_of_libraries_and_tracebacks_are_redacted(stream: io.StringIO) -> None:
    configure_logging(format="json", level="info", stream=stream)
    logging.getLogger("grpc").error("proxy http://u:hunter2@p refused")
    try:
        raise ValueError("AGE-SECRET-KEY-1HUNTER2")
    except ValueError:
        get_logger("client").exception("failed")
    assert "hunter2" not in stream.getvalue().lower()
    assert "Traceback" in lines(stream)[1]["exception"]


def test_what_is_no_secret_stays(stream: io.StringIO) -> None:
    configure_logging(format="json", level="info", stream=stream)
    get_logger("client").info(
        "e", keys=2, identity="ed25519:AAAA", key_count=3, server="http://h:1/x@y", ok=True, x=None
    )
    (line,) = lines(stream)
    assert (line["keys"], line["identity"], line["key_count"], line["ok"], line["x"]) == (
        2,
        "ed25519:AAAA",
        3,
        True,
        None,
    )
    assert line["server"] == "http://h:1/x@y"
