"""What people do with checkpoints and trees from outside: at a command line, before a fill.

``cli`` reads the command line; ``convert`` rewrites a checkpoint in another format, and ``compare``
says how two differ, both in bounded memory. ``suggest`` proposes rules for a model and a checkpoint
whose names differ: ``starts`` tries the rules that exist, ``words`` compares names, ``families``
and ``pairing`` find leaves and tensors that belong together, ``layouts`` lists the ways from one to
the other, ``decide`` chooses between these or leaves them open, and ``propose`` writes the rules.
``plan_command`` prices a model or a checkpoint on a mesh; ``planning`` records the one, opens the
other and looks for the smallest mesh. Nothing in the package imports this room, except that
``lazyinit`` itself offers ``suggest_rules``.
"""
