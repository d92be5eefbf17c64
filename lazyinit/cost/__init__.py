"""What a tree costs: bytes on each device, bytes of each file, and whether that fits.

Leaves and where they go come in; numbers go out, and nothing is allocated. The one idea is that
all devices of a mesh get shards of the same size, so that bytes are counted once for a mesh and not
once for each device. Nothing here needs a device: a mesh without devices is counted the same way.

``tally`` adds up what lands on devices. ``training`` says what training holds beside the tree, and
``reads`` what each host reads. ``planned`` has the types that ``plan`` returns.
"""
