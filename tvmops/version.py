"""The version of tvmops, stated once."""

VERSION = "0.1.0"
