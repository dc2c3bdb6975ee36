"""`python -m nas_dynamic`: the command line."""

from __future__ import annotations

import sys

from nas_dynamic.experiment.cli import main

sys.exit(main())
