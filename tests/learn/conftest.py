import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """torch's default, a thread for each core, makes small models slow, and its bits depend on the batch."""
    torch.set_num_threads(1)
