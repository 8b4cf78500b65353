import pytest
from peers.ward import Ward


@pytest.fixture(scope="module")
def ward(tmp_path_factory):
    """A running server with the members north and south, for tests that leave it as it is."""
    ward = Ward(tmp_path_factory.mktemp("ward")).start()
    ward.sites = {name: ward.enrol(name) for name in ("north", "south")}
    yield ward
    ward.stop()
    ward.database.close()
