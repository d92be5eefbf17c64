"""Deferred initialization for JAX and Flax.

A parameter is a small program from a key to an array. ``lazyinit`` records the program, not the
array: a tree of programs can be shown, matched against a checkpoint, priced, sharded, and run in
part. See ``docs/architecture.md``.

``__all__`` is the public face: the verbs, the rules, the leaves, and the types that verbs return.
"""

from lazyinit import errors, maps
from lazyinit._abstract import abstract
from lazyinit._check import Check, check
from lazyinit._digest import Digest, digest
from lazyinit._fill import fill
from lazyinit._inspect import TreeView, inspect
from lazyinit._lazy import lazy
from lazyinit._materialize import materialize
from lazyinit._overlap import overlap
from lazyinit._plan import plan
from lazyinit._pretrained import from_pretrained
from lazyinit._reseed import reseed
from lazyinit._save import save
from lazyinit._update import update
from lazyinit.checkpoint import Checkpoint, open_checkpoint
from lazyinit.compat.versions import warn_outside as _warn_outside
from lazyinit.cost.planned import Headroom, Plan
from lazyinit.derived import DerivedParam
from lazyinit.errors import LazyinitError, LazyinitWarning
from lazyinit.keys import RngPath
from lazyinit.match.report import Report
from lazyinit.params import LazyParam, OverlapParam, StoredParam
from lazyinit.patterns import escape
from lazyinit.progress import Progress
from lazyinit.rules.dequantize import Dequantize
from lazyinit.rules.joins import Concat, Split, Stack, Unstack
from lazyinit.rules.layout import Cast, Transpose
from lazyinit.rules.lengths import Pad, Repeat, Trim
from lazyinit.rules.renames import Ignore, Rename, strip_prefix
from lazyinit.rules.reshape import Rearrange, Reshape
from lazyinit.rules.rule import Constant, Rule
from lazyinit.rules.tables import rules_from
from lazyinit.rules.torch import TORCH
from lazyinit.rules.values import ResizeGrid, Scale
from lazyinit.shard_by import shard_by_metadata, shard_by_rules, shard_fsdp
from lazyinit.shard_to_fit import shard_auto
from lazyinit.sources import Source
from lazyinit.tools.suggest import Suggestion, suggest_rules
from lazyinit.view.provenance import Provenance, provenance

__all__ = [
    "TORCH",
    "Cast",
    "Check",
    "Checkpoint",
    "Concat",
    "Constant",
    "Dequantize",
    "DerivedParam",
    "Digest",
    "Headroom",
    "Ignore",
    "LazyParam",
    "LazyinitError",
    "LazyinitWarning",
    "OverlapParam",
    "Pad",
    "Plan",
    "Progress",
    "Provenance",
    "Rearrange",
    "Rename",
    "Repeat",
    "Report",
    "Reshape",
    "ResizeGrid",
    "RngPath",
    "Rule",
    "Scale",
    "Source",
    "Split",
    "Stack",
    "StoredParam",
    "Suggestion",
    "Transpose",
    "TreeView",
    "Trim",
    "Unstack",
    "abstract",
    "check",
    "digest",
    "errors",
    "escape",
    "fill",
    "from_pretrained",
    "inspect",
    "lazy",
    "maps",
    "materialize",
    "open_checkpoint",
    "overlap",
    "plan",
    "provenance",
    "reseed",
    "rules_from",
    "save",
    "shard_auto",
    "shard_by_metadata",
    "shard_by_rules",
    "shard_fsdp",
    "strip_prefix",
    "suggest_rules",
    "update",
]

_warn_outside()
