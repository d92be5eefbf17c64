"""``python -m lazyinit``."""

import sys

from lazyinit.cli import main

sys.exit(main())
