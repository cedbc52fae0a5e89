"""What the tests of this package share."""

from tests.own_cache import own_cache  # noqa: F401
