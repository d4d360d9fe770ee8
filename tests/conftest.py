import pytest
from torch.distributions import Distribution


@pytest.fixture(autouse=True)
def _validation_as_it_is_by_default():
    """torch.compile switches the validation of distributions' arguments off for the whole process."""
    yield
    Distribution.set_default_validate_args(__debug__)
