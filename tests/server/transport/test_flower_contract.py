"""Our Grid under flwr 1.41.0's own ServerApp, ClientApp and messages, over real connections."""

import threading
import time
from importlib.metadata import version

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from peers.ward import OTHER_STUDY, STUDY, Ward, running

from wardround_common.errors import ProtocolError
from wardround_common.identity.keys import node_id
from wardround_common.rounds import BlobRef, document_format
from wardround_common.wire.content import pack, unpack_content
from wardround_server.transport.flower import SERVER_NODE, new_message, unpack
from wardround_server.transport.grid import GrpcGrid


def context():
    return Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})


def hospital(site):
    """A ClientApp that answers with its name, what it was asked and a blob twice as long."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        document, blobs = unpack(message)
        made = tuple(site.blobs.put(site.blobs.read(blob) * 2) for blob in blobs)
        return Message(pack(document + b" by " + site.name.encode(), made), reply_to=message)

    @app.query("cosign")
    def cosign(message, context):
        return Message(pack(b"cosigned"), reply_to=message)

    return lambda message: app(message, context())


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    ward = Ward(tmp_path_factory.mktemp("ward")).start()
    sites = [ward.enrol(name) for name in ("north", "south", "west")]
    with running(*(site.session(hospital(site)) for site in sites)):
        ward.wait_for(*((site.name, "up") for site in sites))
        yield ward, {site.name: site.enrolled.identity for site in sites}
    ward.stop()


def grid_of(three, study=STUDY, run_id=1):
    ward, members = three
    return GrpcGrid(ward.hub, study=study, members=members, run_id=run_id)


def test_the_pinned_flower():
    assert version("flwr") == "1.41.0"
    assert issubclass(GrpcGrid, Grid)
    assert GrpcGrid.__abstractmethods__ == frozenset()


def test_a_server_app_runs_rounds_on_our_grid(three):
    results, app = [], ServerApp()
    blob = three[0].blobs.put(b"adapter")

    @app.main()
    def main(grid, context):
        for round_ in range(1, 6):
            messages = [
                grid.create_message(pack(b"plan", (blob,)), "train", n, str(round_)) for n in grid.get_node_ids()
            ]
            results.append(list(grid.send_and_receive(messages, timeout=20)))

    app(grid_of(three), context())
    assert len(results) == 5
    for round_, replies in enumerate(results, 1):
        assert {unpack(r)[0] for r in replies} == {b"plan by north", b"plan by south", b"plan by west"}
        assert {r.metadata.group_id for r in replies} == {str(round_)}
        assert {three[0].blobs.read(unpack(r)[1][0]) for r in replies} == {b"adapteradapter"}


def test_reply_metadata_is_what_flower_expects(three):
    grid = grid_of(three, run_id=7)
    node = node_id(three[1]["south"])
    sent = grid.create_message(pack(b"x"), "query.cosign", node, "r1", ttl=60)
    (reply,) = grid.send_and_receive([sent], timeout=20)
    assert unpack(reply) == (b"cosigned", ())
    m = reply.metadata
    assert (m.run_id, m.src_node_id, m.dst_node_id, m.group_id) == (7, node, SERVER_NODE, "r1")
    assert (m.reply_to_message_id, m.message_type) == (sent.metadata.message_id, "query.cosign")
    assert m.message_id not in ("", sent.metadata.message_id)
    assert not reply.has_error()


def test_push_then_pull_gives_each_reply_once(three):
    grid = grid_of(three)
    ids = list(grid.push_messages(grid.create_message(pack(b"p"), "train", n, "1") for n in grid.get_node_ids()))
    assert len(set(ids)) == 3
    replies, deadline = [], time.monotonic() + 20
    while len(replies) < 3 and time.monotonic() < deadline:
        replies += grid.pull_messages(ids)
        threading.Event().wait(0.01)
    assert sorted(r.metadata.reply_to_message_id for r in replies) == sorted(ids)
    assert list(grid.pull_messages(ids)) == []


def test_a_site_whose_app_fails_answers_in_one_generic_word(three):
    grid = grid_of(three)
    nodes = list(grid.get_node_ids())
    # The hospitals' app has no such function: flwr raises inside it.
    replies = grid.send_and_receive([grid.create_message(pack(b"x"), "evaluate", n, "1") for n in nodes], timeout=20)
    assert {unpack(r)[0] for r in replies} == {b'{"code":"failed-locally","format":"wardround/refused/1"}'}
    assert {document_format(unpack(r)[0]) for r in replies} == {"wardround/refused/1"}


def test_two_studies_at_once_do_not_mix(three):
    grids = {b"one": grid_of(three, STUDY, 1), b"two": grid_of(three, OTHER_STUDY, 2)}
    wrong, counts = [], dict.fromkeys(grids, 0)

    def study(name, grid):
        for round_ in range(8):
            document = name + b" %d" % round_
            messages = [grid.create_message(pack(document), "train", n, str(round_)) for n in grid.get_node_ids()]
            for reply in grid.send_and_receive(messages, timeout=20):
                counts[name] += 1
                if not unpack(reply)[0].startswith(document + b" by") or reply.metadata.run_id != grid.run.run_id:
                    wrong.append(reply)

    threads = [threading.Thread(target=study, args=item) for item in grids.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert wrong == []
    assert counts == {b"one": 24, b"two": 24}


def test_one_study_cannot_pull_anothers_replies(three):
    one, two = grid_of(three, STUDY), grid_of(three, OTHER_STUDY)
    ids = list(one.push_messages([one.create_message(pack(b"x"), "train", node_id(three[1]["north"]), "1")]))
    three[0].hub.wait([], 0)
    assert list(two.pull_messages(ids)) == []
    two.withdraw(ids)
    while not (replies := list(one.pull_messages(ids))):
        threading.Event().wait(0.01)
    assert len(replies) == 1


def test_unanswered_messages_are_withdrawn_when_time_is_up(three):
    ward, members = three
    ghost = members | {"ghost": "ed25519:" + "A" * 43 + "="}
    grid = GrpcGrid(ward.hub, study=STUDY, members=ghost)
    nodes = [node_id(ghost["ghost"]), node_id(ghost["north"])]
    assert node_id(ghost["ghost"]) not in grid.get_node_ids()
    replies = list(grid.send_and_receive([grid.create_message(pack(b"x"), "train", n, "1") for n in nodes], timeout=1))
    assert [r.metadata.src_node_id for r in replies] == [nodes[1]]
    assert ward.hub.outstanding("ghost") == ()


def test_misuse_of_the_grid(three):
    grid = grid_of(three)
    with pytest.raises(ValueError, match="no member"):
        grid.push_messages([grid.create_message(pack(b"x"), "train", 12345, "1")])
    node = next(iter(grid.get_node_ids()))
    with pytest.raises(ProtocolError) as caught:
        grid.push_messages([grid.create_message(RecordDict({"a": ConfigRecord({"b": 1})}), "train", node, "1")])
    assert caught.value.code == "message-foreign"
    run = Run.create_empty(9)
    grid.set_run(run)
    assert grid.run is run
    assert grid.create_message(pack(b"x"), "train", node, "1").metadata.run_id == 9
    assert grid.create_message(pack(b"x"), "train", node, "1").metadata.ttl >= 365 * 86_400
    assert {grid.sites[n] for n in grid.get_node_ids()} == {"north", "south", "west"}
    assert [info.node_id for info in grid.get_nodes()] == list(grid.get_node_ids())


BLOB = BlobRef(digest="sha256:" + "a" * 64, length=3)


@pytest.mark.parametrize("blobs", [(), (BLOB,), (BLOB, BlobRef(digest=BLOB.digest, length=0))])
def test_content_round_trip(blobs):
    assert unpack_content(pack(b"doc", blobs)) == (b"doc", blobs)


NO_BLOBS = {"document": b"x", "blob_digests": [], "blob_lengths": []}


@pytest.mark.parametrize(
    "record",
    [
        {**NO_BLOBS, "extra": 1},
        {"document": b"x", "blob_digests": []},
        {**NO_BLOBS, "document": "x"},
        {**NO_BLOBS, "blob_digests": ""},
        {**NO_BLOBS, "blob_lengths": 0},
        {**NO_BLOBS, "blob_lengths": [1]},
        {**NO_BLOBS, "blob_digests": [BLOB.digest], "blob_lengths": [1.0]},
        {**NO_BLOBS, "blob_digests": [BLOB.digest], "blob_lengths": [True]},
        {**NO_BLOBS, "blob_digests": ["../x"], "blob_lengths": [1]},
        {**NO_BLOBS, "blob_digests": [BLOB.digest], "blob_lengths": [-1]},
        {**NO_BLOBS, "blob_digests": [BLOB.digest] * 3, "blob_lengths": [1] * 3},
        {**NO_BLOBS, "document": b"x" * ((1 << 20) + 1)},
    ],
)
def test_foreign_records_are_refused(record):
    with pytest.raises(ProtocolError) as caught:
        unpack_content(RecordDict({"wardround": ConfigRecord(record)}))
    assert caught.value.code == "message-foreign"


def test_other_shapes_of_content_are_refused():
    good = pack(b"x")["wardround"]
    for content in ({}, {"other": good}, {"wardround": good, "more": good}):
        with pytest.raises(ProtocolError):
            unpack_content(RecordDict(content))


def test_an_error_message_has_no_content_for_us():
    from flwr.app import Error

    message = new_message(pack(b"x"), run_id=1, message_type="train", node=5, group_id="1", ttl_s=5)
    with pytest.raises(ProtocolError) as caught:
        unpack(Message(Error(code=1, reason="secret"), reply_to=message))
    assert caught.value.code == "message-without-content"
