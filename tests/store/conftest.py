"""What tests of stores share."""

import gc

import pytest

from landscape.store import Record


@pytest.fixture
def records_alive():
    """Count the records that were made in this test and live.

    The collector passes over what was there before: millions of things after other tests.
    """
    gc.freeze()

    def count():
        gc.collect()
        return sum(type(thing) is Record for thing in gc.get_objects())

    yield count
    gc.unfreeze()
