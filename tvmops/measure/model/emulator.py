"""Where ARM code runs on this machine: an emulated Python, and what qemu calls the CPUs of our targets."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tvmops.errors import ModelToolsError
from tvmops.targets import Target

_PROJECT = Path(__file__).resolve().parents[3]
_SET_UP = _PROJECT / "scripts/arm-environment"

# A CPU that has what a target needs, and no more than qemu 7.2 can leave out: SVE comes with SVE2.
# No SME: ours needs none, and libraries that find it choose kernels for it.
CPUS = {
    "cortex-a53": "cortex-a53",
    "cortex-a72": "cortex-a72",
    "cortex-a76": "cortex-a76",
    "neoverse-n1": "neoverse-n1",
    "neoverse-v1": "max,sme=off,sve128=on,sve256=on,sve512=off",
    "neoverse-v2": "max,sme=off,sve128=on,sve256=off,sve512=off",
    "apple-m4": "max,sme=off,sve=off",
}


def folder() -> Path:
    """Return the folder that scripts/arm-environment has set up; $TVMOPS_ARM names another one."""
    return Path(os.environ.get("TVMOPS_ARM") or _PROJECT / ".arm")


def set_up() -> Path:
    """Return that folder, set up anew if it is out of date and this is a checkout of the project.

    Raises
    ------
    ModelToolsError
        It can't be set up.
    """
    if "TVMOPS_ARM" not in os.environ and _SET_UP.is_file():  # at once, where there is nothing to do
        done = subprocess.run([_SET_UP], capture_output=True, text=True)
        if done.returncode != 0:
            raise ModelToolsError(what="an emulated ARM machine", detail=done.stderr.strip()[-500:])
    if not (folder() / "made-of").is_file():
        raise ModelToolsError(what="an emulated ARM machine", detail=f"{folder()} is not set up")
    return folder()


def environment(target: Target, out: Path, runtime: Path) -> dict[str, str]:
    """Return the variables that make the emulated Python a CPU of `target`, counting to the file `out`."""
    plugin = f"{folder() / 'count.so'},out={out},l1={target.l1_bytes},l2={target.l2_bytes}"
    return {
        "QEMU_CPU": CPUS[target.name],
        "QEMU_PLUGIN": plugin,
        "TVMOPS_COUNTS": str(out),
        "TVMOPS_ARM_RUNTIME": str(runtime),
        "TVMOPS_NUM_THREADS": "1",
    }
