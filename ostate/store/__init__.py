"""The named format, version 1: write it, read it (`schemas/manifest-v1.schema.json`). `validating` checks it, `digesting` compares digests."""

from ostate.core.atomic import check_target

from .header import begins_as_ours
from .loading import load
from .plan import shard_path
from .writing import Written, sources_of, write, write_index

__all__ = ["Written", "begins_as_ours", "check_target", "load", "shard_path", "sources_of", "write", "write_index"]
