"""Errors raised while serving a call become a gRPC status; see `wire.failures` for the rules."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError

from wardround_common.errors import WardroundError
from wardround_common.logging import get_logger
from wardround_common.wire.failures import CODE_KEY, to_wire
from wardround_common.wire.frames import invalid_frame

log = get_logger("server.calls")

Context = grpc.aio.ServicerContext[Any, Any]


@asynccontextmanager
async def errors_to_status(context: Context) -> AsyncIterator[None]:
    """Abort the call with a status for any error that the block raises."""
    try:
        yield
    except (grpc.aio.AbortError, asyncio.CancelledError):
        raise
    except WardroundError as error:
        log.info("call refused", code=error.code, reason=error.message)
        await abort(context, error)
    except DecodeError:
        log.info("call refused", code="frame-invalid", reason="bytes that are no message")
        await abort(context, invalid_frame("bytes that are no message of this protocol"))
    except Exception as error:
        log.exception("call failed")
        await abort(context, error)


async def abort(context: Context, error: Exception) -> NoReturn:
    """End the call at once with the error's status, code and one line of text."""
    status, code, text = to_wire(error)
    await context.abort(grpc.StatusCode[status], text, ((CODE_KEY, code),))
