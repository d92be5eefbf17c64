"""A process in which transformers has PyTorch: in the suite's own it is told that there is none."""

import forked


def run_with_torch(program, *args):
    """Runs Python source, which finds ``args`` in ``sys.argv``; its first error is the caller's."""
    forked.run(
        program,
        *args,
        imports="import torch, transformers.modeling_utils",
        env=(("USE_TORCH", "1"), ("USE_FLAX", "0")),
    )
