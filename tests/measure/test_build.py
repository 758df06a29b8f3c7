"""What compiling does where the disk is full."""

from __future__ import annotations

from pathlib import Path

import pytest

import tvmops
from tvmops.measure.build import compile_object
from tvmops.schedules import templates_for


def test_a_full_disk_is_an_error_and_not_the_end_of_the_process() -> None:
    here, work = tvmops.target("native"), tvmops.workload("softmax", rows=2, cols=3)
    template = templates_for(work, here)[0]
    module = template.build(work, here, template.default(work, here))
    with pytest.raises(OSError, match="No space left on device"):
        compile_object(module, here, Path("/dev/full"))
