import pytest
from peers.big_log import make_big_log


@pytest.fixture(scope="session")
def big(tmp_path_factory):
    """A finished study of 4 hospitals and 24 rounds, with dropouts; read only."""
    return make_big_log(tmp_path_factory.mktemp("big"), hospitals=4, rounds=24)
