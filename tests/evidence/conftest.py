"""Models built again by these tests stay away from the user's cache, as in `tests/ordering`."""

from tests.own_cache import own_cache  # noqa: F401
