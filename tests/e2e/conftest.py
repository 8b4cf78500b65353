"""A tiny model once, and federations that are stopped whatever happens."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from peers.federation import Federation, federation, tiny_model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture
def fed(tmp_path: Path, model: Path) -> Iterator[Federation]:
    with federation(tmp_path, model) as made:
        yield made
