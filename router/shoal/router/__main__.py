"""`python -m shoal.router`."""

import sys

from shoal.router.server import main

sys.exit(main())
