import pytest
from peers import tiny_models


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    return tiny_models.make_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    return tiny_models.make_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tiny tensors: a second thread only waits, for seconds where the machine is busy."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
