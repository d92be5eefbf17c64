"""What people do with checkpoints and trees from outside: at a command line, before a fill.

``cli`` reads the command line; ``convert`` rewrites a checkpoint in another format, and ``compare``
says how two differ, both in bounded memory. ``suggest`` proposes rules for a model and a checkpoint
whose names differ: ``words`` compares names, ``pairing`` finds families of leaves and tensors that
belong together, and ``propose`` writes the rules. ``plan_command`` prices a model or a checkpoint
on a mesh; ``planning`` records the one, opens the other and looks for the smallest mesh. Nothing
in the package imports this room, except that ``lazyinit`` itself offers ``suggest_rules``.
"""
