"""One forking parent for all rows, and federations copied from templates."""

from collections.abc import Iterator

import pytest
from peers.light import Workshop, workshop


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    with workshop(tmp_path_factory.mktemp("faults")) as made:
        yield made
