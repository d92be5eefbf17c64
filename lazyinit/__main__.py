"""Runs the command line for ``python -m lazyinit``."""

import sys

from lazyinit.tools.cli import main

sys.exit(main())
