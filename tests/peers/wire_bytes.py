"""Frames for fuzzing: well-formed ones with extreme fields, and bytes that were frames before something bit them."""

import random
from collections.abc import Sequence

from hypothesis import strategies as st
from peers.ward import STUDY

from wardround_common.wire import wardround_pb2 as pb

TEXTS = st.sampled_from(
    ["", "train", "query.cosign", "system", STUDY, "sha256:" + "0" * 64, "../../etc/passwd", "x" * 5_000, "\x00", "é\n"]
) | st.text(max_size=20)
DATA = st.binary(max_size=200) | st.sampled_from(
    [b"{}", b"[" * 2_000, b'{"format":"wardround/round-plan/1"}', b"\xff" * 99]
)
NUMBERS = st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]) | st.integers(0, 2**64 - 1)
VERSIONS = st.sampled_from([0, 1, 2, 2**31, 2**32 - 1])

REFS = st.builds(pb.BlobRef, study=TEXTS, digest=TEXTS, length=NUMBERS)
CHUNKS = st.builds(pb.BlobChunk, blob=REFS, offset=NUMBERS, data=DATA)
HELLOS = st.builds(pb.Hello, min_version=VERSIONS, max_version=VERSIONS, studies=st.lists(TEXTS, max_size=4))
ANSWERS = st.builds(pb.Answer, reply_to=TEXTS, document=DATA, blobs=st.lists(REFS, max_size=2))
WORKS = st.builds(
    pb.Work,
    message_id=TEXTS,
    message_type=TEXTS,
    group_id=TEXTS,
    study=TEXTS,
    document=DATA,
    blobs=st.lists(REFS, max_size=2),
)
CLIENT_FRAMES = st.one_of(
    st.builds(pb.ClientFrame, hello=HELLOS),
    st.builds(pb.ClientFrame, answer=ANSWERS),
    st.builds(pb.ClientFrame, goodbye=st.just(pb.Goodbye())),
    st.just(pb.ClientFrame()),
)
SERVER_FRAMES = st.one_of(
    st.builds(pb.ServerFrame, welcome=st.builds(pb.Welcome, version=VERSIONS)),
    st.builds(pb.ServerFrame, work=WORKS),
    st.just(pb.ServerFrame()),
)


def bitten(frames: Sequence[bytes], seed: int) -> list[bytes]:
    """Return the frames, each perhaps with bytes flipped, cut off, doubled or put in."""
    chooser = random.Random(seed)
    found = []
    for frame in frames:
        data = bytearray(frame)
        kind = chooser.randrange(5)
        at = chooser.randrange(len(data) + 1)
        if kind == 1 and data:
            data[at % len(data)] ^= 1 << chooser.randrange(8)
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            data *= 2
        elif kind == 4:
            data[at:at] = chooser.randbytes(chooser.randrange(1, 9))
        found.append(bytes(data))
    return found
