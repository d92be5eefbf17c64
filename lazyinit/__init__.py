"""Deferred initialization for JAX and Flax."""

from lazyinit.lazy import lazy as lazy
from lazyinit.materialize import materialize as materialize
from lazyinit.params import LazyParam as LazyParam
from lazyinit.params import RngPath as RngPath
from lazyinit.params import StoredParam as StoredParam
from lazyinit.sharding import shard_by_metadata as shard_by_metadata
from lazyinit.sharding import shard_by_rules as shard_by_rules
from lazyinit.sharding import shard_fsdp as shard_fsdp
