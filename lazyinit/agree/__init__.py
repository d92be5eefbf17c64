"""What several processes are about to do is compared before any of them does it.

In comes what a verb has found out and not yet begun: leaves, shardings, the plan of files. Nothing
goes out if all processes found the same; else the same error in each. The one idea: a short digest
of it all travels first, over the store that the hosts share, and details travel only where the
digests differ.
"""

from lazyinit.agree.calls import Group as Group
from lazyinit.agree.calls import exchange as exchange
from lazyinit.agree.calls import telling as telling
from lazyinit.agree.verbs import before_making as before_making
from lazyinit.agree.verbs import before_saving as before_saving
from lazyinit.agree.verbs import processes_of as processes_of
