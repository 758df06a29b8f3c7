"""`python -m tvmops` is `tvmops`."""

from __future__ import annotations

import sys

from tvmops.cli.main import main

sys.exit(main())
