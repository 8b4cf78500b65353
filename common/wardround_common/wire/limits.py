"""Limits on everything that crosses the wire, each with its reason. docs/spec/wire.md lists them."""

from wardround_common.documents import MAX_DOCUMENT_BYTES

CHUNK_BYTES = 512 * 1024
"""Bytes in a blob chunk: large enough that a chunk's fixed cost vanishes, small enough that hundred
parallel uploads hold 50 MiB, and that a broken line loses little."""

MAX_CHUNK_BYTES = 1 << 20
"""A receiver's bound on one chunk, so that senders may choose up to twice ours."""

MAX_FRAME_BYTES = MAX_DOCUMENT_BYTES + 64 * 1024
"""A frame is one document or one chunk plus ids; gRPC refuses more before it is parsed."""

MAX_BLOB_BYTES = 4 << 30
"""A full rank-256 adapter of a 70-billion-parameter model has about 3 GiB in float32."""

MAX_BLOBS = 2
"""Blobs that one message names: a plan under secure aggregation names the adapter and the masks' kit."""

MAX_OPEN_BLOBS = 4
"""Blobs that one site may have put for one study and not yet answered with: an answer has at most two."""

MAX_QUEUED_WORK = 64
"""Unanswered messages per site. A study has at most two a round; 32 studies are more than a site runs."""

MAX_STUDIES = 256
"""Study digests in one `Hello` or list: 17 kB."""

MAX_ID_BYTES = 64
"""Message ids are UUIDs (36 bytes), group ids round numbers."""

MAX_ERROR_TEXT = 200
"""Characters of error text taken from a peer: one line on a screen, never a page of its choosing."""

MAX_METADATA_BYTES = 8 * 1024
"""Header and trailer size; ours are below 1 kB."""

MAX_STREAMS_PER_CONNECTION = 16
"""A hospital has one session, one blob and one unary call open at a time."""

MAX_RPCS = 1_024
"""Concurrent calls at one server: 100 sessions and their blobs, with room; bounds memory."""

HELLO_TIMEOUT_S = 15.0
"""A stream that has not said Hello by then is closed, so that silent ones do not pile up."""

UNARY_TIMEOUT_S = 30.0
"""No unary call does more than read or write one small file."""

CHUNK_TIMEOUT_S = 120.0
"""A blob stream that moves no chunk for so long is dead; 512 KiB in 120 s is a 35 kbit/s line."""

HANDSHAKE_S = 20.0
"""TCP, TLS and HTTP/2's first frame take at most so long; gRPC's own two minutes would let strangers hold six times as
many sockets open."""

KEEPALIVE_S = 8.0
"""Ping interval: with the time-out below, a hospital whose power fails is noticed within 15 s; firewalls forget an
idle connection after 30 to 60 s."""

KEEPALIVE_TIMEOUT_S = 5.0
"""Unanswered pings for so long mean that the line is cut; the longest round trip by satellite takes a second."""
