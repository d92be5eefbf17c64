"""``stacked_layers``: makes rules for layers that MaxText scans from the rules of each layer."""

from dataclasses import replace

from lazyinit.rules.change import Change
from lazyinit.rules.joins import Split, Stack
from lazyinit.rules.reshape import Rearrange
from lazyinit.rules.rule import Patterns, Rule


def stacked_layers(
    layers: list[tuple[Rule, ...]], period: int, count: int, head: str = "layers"
) -> tuple[Rule, ...]:
    """Returns rules that stack layers along axis 1, for a scan with ``period`` layers in a step.

    ``layers`` are the rules of each layer, ``count`` is how many of them the scan runs, and
    ``head`` is the name of the scanned module.
    """
    made = []
    for place in range(min(period, count)):
        for each, *more in zip(*layers[place:count:period], strict=True):
            leaf, *others = (
                text.replace(f"decoder/{head}_0", f"decoder/{head}", 1) for text in each.leaves
            )
            leaves: Patterns = (leaf, *others) if others else leaf
            tensors = tuple(str(r.tensor) for r in (each, *more))
            # MaxText stacks variables that it does not train, which are no nnx.Param, along axis 0.
            axis = 0 if leaf.endswith("MoeBlock_0/gate/bias") else 1
            # A scan of a single step has an axis of size 1.
            one = Rearrange("d ... -> d 1 ..." if axis else "... -> 1 ...")
            last: Change = Stack(axis) if more else one
            tensor = tensors if more else tensors[0]
            changes = each.changes().changes
            ends = changes[-1:] if changes and isinstance(changes[-1], Split) else ()
            layout = (*changes[: len(changes) - len(ends)], last, *ends)
            made.append(replace(each, leaf=leaves, tensor=tensor, layout=layout))
    return tuple(made)
