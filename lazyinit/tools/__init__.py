"""The command line ``lazyinit``, and ``suggest_rules``, which proposes rules before a fill.

The arguments of a command line come in, or a tree and a checkpoint; files, tables and proposed
rules go out. The one idea is that this room uses the rest of the package as a user would: nothing
in the package imports it, except that ``lazyinit`` itself offers ``suggest_rules``.

``cli`` reads the command line, and ``options`` looks up the rules and dtypes that its options name.
``convert`` rewrites a checkpoint in another format, and ``compare`` says how two checkpoints
differ, both in bounded memory. ``suggest`` proposes rules for a model and a checkpoint whose names
differ: ``starts`` tries the rules that exist, ``words`` compares names, ``families`` and
``pairing`` find leaves and tensors that belong together, ``layouts`` lists the ways from one to the
other, ``decide`` chooses between these or leaves them open, and ``propose`` writes the rules.
``plan_command`` is ``lazyinit plan``. For it, ``planning`` records the model or opens the
checkpoint, and finds the smallest mesh on which it fits; ``from_config`` lists the tensors of a
model of which there is only a ``config.json``.
"""
