"""Models built again by these tests stay away from the user's cache, as in `tests/ordering`."""

from tests.ordering.conftest import _own_cache  # noqa: F401
