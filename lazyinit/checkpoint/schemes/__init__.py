"""How quantized weights lie in checkpoints, one file for each family of methods.

The tensors of one weight come in, with what ``config.json`` says of them, and a source of its
numbers goes out, which reads its own part of each tensor. The one idea is that a scheme says which
tensors are one weight and what they mean, and checks that shapes and dtypes are those that the
configuration promises; how anything is read, it leaves to the sources of ``packed``, ``scales`` and
``quantized``. Read ``weights.py`` first.
"""
