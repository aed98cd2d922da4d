"""`python -m pipeline` is `mar`."""

import sys

from pipeline.cli import main

sys.exit(main())
