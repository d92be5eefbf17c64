"""Building blocks of maps: the rules for one module of each kind, from PyTorch to Flax."""

from lazyinit.rules.change import Change
from lazyinit.rules.joins import Split
from lazyinit.rules.layout import Transpose
from lazyinit.rules.reshape import Rearrange
from lazyinit.rules.rule import Constant, Patterns, Rule

AXES = Transpose("o i -> i o")
CONV = Transpose("o i h w -> h w i o")
HEADS_OUT = Rearrange("(h k) i -> i h k")
HEADS_IN = Rearrange("o (h k) -> h k o")
HEADS = Rearrange("(h k) -> h k")


def rule(leaf: Patterns, tensor: Patterns | Constant, *layout: Change, tied: bool = False) -> Rule:
    """Returns a rule as maps have them: it is optional, and fits with or without collections."""
    return Rule(leaf, tensor, layout, across_collections=True, optional=True, tied=tied)


def same(*names: str) -> tuple[Rule, ...]:
    """Returns rules for leaves that have the names and the layouts of their tensors."""
    return tuple(rule(name, name.replace("/", ".")) for name in names)


def linear(leaf: str, tensor: str, kernel: Change = AXES) -> tuple[Rule, ...]:
    """Returns rules for a ``Linear``: its kernel ``[in, out]``, and its bias if it has one."""
    return rule(f"{leaf}/kernel", f"{tensor}.weight", kernel), rule(
        f"{leaf}/bias", f"{tensor}.bias"
    )


def norm(leaf: str, tensor: str) -> tuple[Rule, ...]:
    """Returns rules for a ``LayerNorm`` or ``RMSNorm``: its scale, and its bias if it has one."""
    return rule(f"{leaf}/scale", f"{tensor}.weight"), rule(f"{leaf}/bias", f"{tensor}.bias")


def embed(leaf: str, tensor: str) -> tuple[Rule, ...]:
    """Returns the rule for an ``Embed``."""
    return (rule(f"{leaf}/embedding", f"{tensor}.weight"),)


def heads(leaf: str, tensor: str) -> tuple[Rule, ...]:
    """Returns rules for a projection to heads: kernel ``[d, h, k]`` and bias ``[h, k]``."""
    return (
        rule(f"{leaf}/kernel", f"{tensor}.weight", HEADS_OUT),
        rule(f"{leaf}/bias", f"{tensor}.bias", HEADS),
    )


def from_heads(leaf: str, tensor: str) -> tuple[Rule, ...]:
    """Returns rules for a projection from heads: kernel ``[h, k, d]`` and bias ``[d]``."""
    return linear(leaf, tensor, HEADS_IN)


def fused_heads(leaves: tuple[str, ...], tensor: str) -> tuple[Rule, ...]:
    """Returns rules for projections to heads that one ``Conv1D`` ``[in, out]`` has fused."""
    kernels = tuple(f"{leaf}/kernel" for leaf in leaves)
    biases = tuple(f"{leaf}/bias" for leaf in leaves)
    return (
        rule(kernels, f"{tensor}.weight", Split(axis=1), Rearrange("i (h k) -> i h k")),
        rule(biases, f"{tensor}.bias", Split(axis=0), HEADS),
    )
