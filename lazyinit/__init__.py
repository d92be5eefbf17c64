"""Deferred initialization for JAX and Flax.

A parameter is a small program from a key to an array. ``lazyinit`` records the program, not the
array: a tree of programs can be shown, matched against a checkpoint, priced, sharded, and run in
part. See ``docs/architecture.md``.
"""

from lazyinit import errors as errors
from lazyinit import maps as maps
from lazyinit._check import Check as Check
from lazyinit._check import check as check
from lazyinit._fill import fill as fill
from lazyinit._inspect import inspect as inspect
from lazyinit._lazy import lazy as lazy
from lazyinit._materialize import materialize as materialize
from lazyinit._overlap import overlap as overlap
from lazyinit._plan import plan as plan
from lazyinit._pretrained import from_pretrained as from_pretrained
from lazyinit._reseed import reseed as reseed
from lazyinit._save import save as save
from lazyinit.checkpoint import open_checkpoint as open_checkpoint
from lazyinit.compat.versions import warn_outside as _warn_outside
from lazyinit.errors import LazyinitError as LazyinitError
from lazyinit.errors import LazyinitWarning as LazyinitWarning
from lazyinit.keys import RngPath as RngPath
from lazyinit.params import LazyParam as LazyParam
from lazyinit.params import OverlapParam as OverlapParam
from lazyinit.params import StoredParam as StoredParam
from lazyinit.rules.joins import Concat as Concat
from lazyinit.rules.joins import Split as Split
from lazyinit.rules.joins import Stack as Stack
from lazyinit.rules.joins import Unstack as Unstack
from lazyinit.rules.layout import Cast as Cast
from lazyinit.rules.layout import Transpose as Transpose
from lazyinit.rules.renames import Ignore as Ignore
from lazyinit.rules.renames import Rename as Rename
from lazyinit.rules.renames import strip_prefix as strip_prefix
from lazyinit.rules.reshape import Rearrange as Rearrange
from lazyinit.rules.rule import Constant as Constant
from lazyinit.rules.rule import Rule as Rule
from lazyinit.rules.torch import TORCH as TORCH
from lazyinit.sharding import shard_by_metadata as shard_by_metadata
from lazyinit.sharding import shard_by_rules as shard_by_rules
from lazyinit.sharding import shard_fsdp as shard_fsdp
from lazyinit.tools.suggest import suggest_rules as suggest_rules
from lazyinit.view.provenance import Provenance as Provenance
from lazyinit.view.provenance import provenance as provenance

_warn_outside()
