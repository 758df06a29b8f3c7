"""Kernels in TVM's kernel language: the syntax of Python, with rules of its own."""

import sys
from typing import Any

from tvm.script.parser.core.parser import ScriptMacro


def _find_parser(macro: ScriptMacro) -> Any:
    """Return the parser that a frame above left for `macro`.

    TVM's own way reads the source of every frame too, at each use of a macro: more than half of the time
    that a kernel takes to make, and several times that where the frames are many.
    """
    frame = sys._getframe()
    while frame.f_globals.get(macro.parser_object_name) is None:
        assert frame.f_back is not None
        frame = frame.f_back
    return frame.f_globals[macro.parser_object_name]


ScriptMacro._find_parser_def = _find_parser
