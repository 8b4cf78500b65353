import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wardround_common.audit.tiles import (
    EMPTY_ROOT,
    MAX_PROOF_HASHES,
    RightEdge,
    TileName,
    bundle_names,
    consistency_proof,
    decode_bundle,
    encode_bundle,
    inclusion_proof,
    leaf_hash,
    parse_tile_path,
    partial_names,
    tree_root,
    verify_consistency,
    verify_inclusion,
)
from wardround_common.errors import VerificationError

# Inputs and roots of the reference tree in google/certificate-transparency,
# cpp/merkletree/merkle_tree_test.cc (the same list is in transparency-dev/merkle, testonly/constants.go).
CT_LEAVES = [bytes.fromhex(text) for text in (
    "", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"
)]  # fmt: skip
CT_ROOTS = (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)


def slow_root(hashes):
    """RFC 6962 section 2.1, word for word."""
    if not hashes:
        return hashlib.sha256(b"").digest()
    if len(hashes) == 1:
        return hashes[0]
    k = 1
    while k * 2 < len(hashes):
        k *= 2
    return hashlib.sha256(b"\x01" + slow_root(hashes[:k]) + slow_root(hashes[k:])).digest()


class Tree:
    """A whole tree in memory, with every tile."""

    def __init__(self, size):
        self.size = size
        self.hashes = [leaf_hash(b"%d" % n) for n in range(size)]
        self.edge, self.tiles = RightEdge(), {}
        for hash_ in self.hashes:
            for tile in self.edge.add(hash_):
                self.tiles[tile.name.level, tile.name.index] = tile.data
        for tile in self.edge.partial_tiles():
            self.tiles[tile.name.level, tile.name.index] = tile.data

    def fetch(self, level, index, width):
        data = self.tiles[level, index][: 32 * width]
        assert len(data) == 32 * width
        return data


def test_reference_roots_of_certificate_transparency():
    edge = RightEdge()
    assert edge.root() == EMPTY_ROOT
    for leaf, root in zip(CT_LEAVES, CT_ROOTS, strict=True):
        edge.add(leaf_hash(leaf))
        assert edge.root().hex() == root


@pytest.mark.parametrize("size", [1, 2, 3, 255, 256, 257, 511, 512, 513, 700])
def test_edge_equals_the_recursive_definition(size):
    tree = Tree(size)
    assert tree.edge.root() == slow_root(tree.hashes)
    assert RightEdge.load(size, tree.fetch).root() == tree.edge.root()


def test_three_levels_of_tiles():
    tree = Tree(70_000)
    # The example of C2SP tlog-tiles, "Partial Tiles".
    assert [(n.level, n.index, n.width) for n in partial_names(70_000)] == [(0, 273, 112), (1, 1, 17), (2, 0, 1)]
    assert sum(level == 0 for level, _ in tree.tiles) == 274
    root = tree.edge.root()
    for index in (0, 255, 256, 65_535, 65_536, 69_999):
        verify_inclusion(tree.hashes[index], index, 70_000, inclusion_proof(index, 70_000, tree.fetch), root)
    known: dict[tuple[int, int], bytes] = {}
    for index in (69_999, 0, 69_998, 65_535, 256, 1):
        assert inclusion_proof(index, 70_000, tree.fetch, known) == inclusion_proof(index, 70_000, tree.fetch)
    for old in (1, 256, 65_536, 65_537, 69_999):
        old_root = tree_root(old, 70_000, tree.fetch)
        verify_consistency(old, old_root, 70_000, root, consistency_proof(old, 70_000, tree.fetch))


TREE = Tree(300)
ROOTS = [slow_root(TREE.hashes[:n]) for n in range(301)]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_proofs_hold_and_only_for_what_they_prove(data):
    size = data.draw(st.integers(1, 300))
    index = data.draw(st.integers(0, size - 1))
    proof = inclusion_proof(index, size, TREE.fetch)
    verify_inclusion(TREE.hashes[index], index, size, proof, ROOTS[size])
    other = data.draw(st.integers(0, size - 1).filter(lambda n: n != index)) if size > 1 else None
    if other is not None:
        with pytest.raises(VerificationError, match="tree"):
            verify_inclusion(TREE.hashes[other], index, size, proof, ROOTS[size])
    old = data.draw(st.integers(0, size))
    growth = consistency_proof(old, size, TREE.fetch)
    verify_consistency(old, ROOTS[old], size, ROOTS[size], growth)
    with pytest.raises(VerificationError):
        verify_consistency(old, bytes(32), size, ROOTS[size], growth)
    for broken in (proof[:-1], (*proof, bytes(32))):
        if broken != proof:
            with pytest.raises(VerificationError):
                verify_inclusion(TREE.hashes[index], index, size, broken, ROOTS[size])
    for broken in (growth[:-1], (*growth, bytes(32))):
        if broken != growth:
            with pytest.raises(VerificationError):
                verify_consistency(old, ROOTS[old], size, ROOTS[size], broken)


@pytest.mark.parametrize(
    ("old", "size", "proof"),
    [(5, 3, ()), (-1, 3, ()), (1, 1 << 41, ()), (2, 4, (b"short",)), (2, 4, (bytes(32),) * (MAX_PROOF_HASHES + 1))],
)
def test_impossible_proofs_are_refused(old, size, proof):
    with pytest.raises(VerificationError) as caught:
        verify_consistency(old, bytes(32), size, bytes(32), proof)
    assert caught.value.code == "log-proof-invalid"


def test_tile_paths():
    # Example of C2SP tlog-tiles: index 1234067 is x001/x234/067.
    assert TileName(level=3, index=1234067).path == "tile/3/x001/x234/067"
    assert TileName(level=None, index=7, width=9).path == "tile/entries/007.p/9"
    for name in (TileName(level=0, index=0), TileName(level=None, index=999_999, width=255)):
        assert parse_tile_path(name.path) == name


@pytest.mark.parametrize(
    "path",
    ["tile/00/000", "tile/0/x000/000", "tile/0/1", "tile/0/000.p/0", "tile/0/000.p/256", "tile/0/000.p/01",
     "checkpoint", "tile/0/000.p/9.tmp", "tile/entries/../000"],
)  # fmt: skip
def test_only_the_one_form_of_a_tile_path_is_known(path):
    assert parse_tile_path(path) is None


@given(st.lists(st.binary(max_size=40), max_size=20), st.binary(max_size=3))
def test_bundles_come_back(entries, rest):
    data = encode_bundle(entries)
    assert decode_bundle(data, len(entries)) == entries
    assert decode_bundle(data + rest, len(entries), exact=False) == entries
    with pytest.raises(VerificationError):
        decode_bundle(data, len(entries) + 1)
    if rest:
        with pytest.raises(VerificationError):
            decode_bundle(data + rest, len(entries))
    if data:
        with pytest.raises(VerificationError):
            decode_bundle(data[:-1], len(entries))


def test_bundle_names_do_not_need_memory_for_absurd_sizes():
    names = bundle_names(1 << 60)
    assert next(names).width == 256
