"""Stand-in until the branch `rules` is merged."""


def unmatch(leaves, *, rules, at=""):
    """Identity."""
    from lazyinit.rules import TORCH

    out = {}
    for p, s in leaves:
        name = p.path
        if rules == TORCH:
            from lazyinit.checkpoint.layout import Transpose

            name = name.removeprefix("params/").replace("/", ".")
            if name.endswith("kernel"):
                name = name[:-6] + "weight"
                s = Transpose("i o -> o i")(s)
        out[name] = s
    return out
