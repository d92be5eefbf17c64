"""What people do with checkpoints and trees from outside: at a command line, before a fill.

Paths, and words of a command line, come in; files, tables and proposed rules go out. The one idea
is that this room uses the others as its own users do: nothing in the package imports it, except
that ``lazyinit`` itself offers ``suggest_rules``.

``cli`` reads the command line, and ``options`` what its options name; ``convert`` rewrites a
checkpoint in another format, and ``compare`` says how two differ, both in bounded memory.
``suggest`` proposes rules for a model and a checkpoint whose names differ: ``starts`` tries the
rules that exist, ``words`` compares names, ``families`` and ``pairing`` find leaves and tensors
that belong together, ``layouts`` lists the ways from one to the other, ``decide`` chooses between
these or leaves them open, and ``propose`` writes the rules. ``plan_command`` plans a model or a
checkpoint on a mesh. ``planning`` records the model or opens the checkpoint, and finds the smallest
mesh; ``from_config`` lists the tensors of a model of which there is only a ``config.json``.
"""
