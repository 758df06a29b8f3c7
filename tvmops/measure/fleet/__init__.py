"""Measure on other machines: a tracker, the devices that dial it, and a run that it lends them to.

Devices and runs connect to the tracker, which alone listens. A run sends it a task for a kind
of device; the tracker hands it to one that is idle, and to another if that one goes away. All
candidates are built where the run is: a device needs no compiler. Nothing that is sent is
ever unpickled, and nothing is read from who does not have the token.
"""
