"""exp, log, tanh, erf and sigmoid of vectors of float32, in plain vector arithmetic.

Each takes a TIR expression of float32 with any number of lanes, one included, and returns one
of the same type: multiplications, additions, comparisons and integer operations, no call, no
branch, no lookup. Loops around it stay in vectors on any target that has fused
multiply-and-add. Don't put them under `T.unroll`, which would bind one name twice.

The method is the textbooks' (J.-M. Muller, Elementary Functions, chapter 11; W. Cody and
W. Waite, Software Manual for the Elementary Functions): take a power of two out of the
argument, evaluate a polynomial of the rest, put the power back through the exponent's bits.
The coefficients are minimax fits by Lawson's iteration, rounded to float32 one by one from the
lowest on, the others fitted again each time.

Stated errors are the largest against float64 over one in 257 of all float32, in units in the
last place of the result (ulp).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvm import tirx

from tvmops.schedules.cpu.emit import broadcast

# Minimax polynomials, coefficients from the lowest on.
# (e**r - 1 - r) / r**2 for |r| <= ln(2) / 2, by the error of e**r
_EXP = (0.49999994, 0.16666521, 0.041668266, 0.008368677, 0.001382073)
_EXP_SHORT = (0.4999923, 0.16667116, 0.041890256, 0.0083124675)
# the same, by the error of e**r - 1
_EXPM1 = (0.49999997, 0.16666546, 0.041667435, 0.008366262, 0.0013870657)
# (log(1 + f) - f + f**2 / 2) / f**3 for 1 + f from sqrt(1/2) to sqrt(2)
_LOG = (0.3333333, -0.2500082, 0.2000124, -0.16623408, 0.14201625, -0.13159677, 0.12761897, -0.07635832)
# -log(1 - erf(x)) / x for x from 0 to 3.93, by the error of erf
_ERF = (1.1283792, 0.6366153, 0.10282659, -0.019366385, 2.8055627e-4, 1.1902185e-3, -3.569714e-4, 3.71645e-5)

_LOG2_E = 1.44269504
_LN2 = 0.69314718
_LN2_REST = -1.9046542e-09  # what the float32 nearest to ln 2 leaves
_ROUND = 1.5 * 2**23  # adding it rounds to an integer, which then lies in the lowest bits
_ROUND_BITS = 0x4B400000
_BIAS = 127  # of the exponent
_MANTISSA = 23  # bits
_SIGN = -(2**31)  # the sign's bit alone
_ROOT_HALF = 0x3F3504F3  # the bits of sqrt(1/2)
_SMALLEST_NORMAL = 2.0**-126


def exp(x: tirx.Expr) -> tirx.Expr:
    """Return e**x to 1 ulp, denormals included; 0 of -inf, inf from 88.73 on, NaN of NaN."""
    name = _Names()
    x = name(at_most(at_least(x, -104), 89))  # zero below, infinite above
    shifted = name(fma(x, like(x, _LOG2_E), like(x, _ROUND)))
    n = name(shifted - like(x, _ROUND))
    rest = name(fma(n, like(x, -_LN2_REST), fma(n, like(x, -_LN2), x)))
    whole = name(_bits(shifted) - _ints(x, _ROUND_BITS))
    half = name(whole >> _ints(x, 1))  # 2**n itself may lie outside of float32
    return name.over(_exp_of_rest(rest, _EXP) * _power_of_two(half) * _power_of_two(whole - half))


def exp_nonpositive(x: tirx.Expr) -> tirx.Expr:
    """Return e**x for x <= 0, where many are to be summed; half the work of `exp`.

    The error is at most 3 + |x| / 16 ulp, about what rounding x to float32 costs. 0 below
    -87.68, NaN of NaN.
    """
    name = _Names()
    x = name(at_least(x, -88))  # n is -127 there, whose power of two comes out as 0
    shifted = name(fma(x, like(x, _LOG2_E), like(x, _ROUND + _BIAS)))
    n = shifted - like(x, _ROUND + _BIAS)
    rest = name(fma(n, like(x, -_LN2), x))
    return name.over(_exp_of_rest(rest, _EXP_SHORT) * _float(_bits(shifted) << _ints(x, _MANTISSA)))


def log(x: tirx.Expr) -> tirx.Expr:
    """Return the natural logarithm to 1 ulp; -inf of 0, NaN below it, inf of inf, NaN of NaN."""
    name = _Names()
    x = name(x)
    is_tiny = x < like(x, _SMALLEST_NORMAL)
    normal = name(tirx.Select(is_tiny, x * like(x, 2.0**_MANTISSA), x))
    whole = name((_bits(normal) - _ints(x, _ROOT_HALF)) >> _ints(x, _MANTISSA))
    f = name(_float(_bits(normal) - (whole << _ints(x, _MANTISSA))) - like(x, 1))
    exponent = tirx.Cast(_type("float32", x), whole)
    n = name(tirx.Select(is_tiny, exponent - like(x, _MANTISSA), exponent))
    square = name(f * f)
    tail = fma(square * f, polynomial(f, _LOG), n * like(x, _LN2_REST))
    finite = name(fma(n, like(x, _LN2), f + fma(square, like(x, -0.5), tail)))
    positive = tirx.Select(x > like(x, 0), tirx.Select(x == like(x, math.inf), x, finite), like(x, math.nan))
    return name.over(tirx.Select(x == like(x, 0), like(x, -math.inf), positive))


def tanh(x: tirx.Expr) -> tirx.Expr:
    """Return the hyperbolic tangent to 3 ulp; 1 and -1 of the infinities, NaN of NaN."""
    name = _Names()
    x = name(x)
    size = at_most(absolute(x), 9.02)  # from there on the result is 1
    e = name(_expm1_nonpositive(size * like(x, -2), name))
    return name.over(with_sign(e / (like(x, -2) - e), x))


def erf(x: tirx.Expr) -> tirx.Expr:
    """Return the error function to 3 ulp; 1 and -1 of the infinities, NaN of NaN."""
    name = _Names()
    x = name(x)
    size = name(at_most(absolute(x), 3.93))  # from there on the result is 1
    logarithm = polynomial(size, _ERF) * -size  # of 1 - erf(x)
    return name.over(with_sign(_expm1_nonpositive(logarithm, name), x))


def sigmoid(x: tirx.Expr) -> tirx.Expr:
    """Return 1 / (1 + e**-x) to 3 ulp; 0 below -88.72, 1 of inf, NaN of NaN."""
    return like(x, 1) / (like(x, 1) + exp(like(x, 0) - x))


def fma(a: tirx.Expr, b: tirx.Expr, c: tirx.Expr) -> tirx.Expr:
    """Return a * b + c, rounded once."""
    return tirx.call_llvm_pure_intrin(_type("float32", c), "llvm.fma", a, b, c)


def rounded(x: tirx.Expr) -> tirx.Expr:
    """Return `x`, a product, rounded: it is not fused with what is added to it."""
    return tirx.call_llvm_pure_intrin(_type("float32", x), "llvm.arithmetic.fence", x)


def polynomial(x: tirx.Expr, coefficients: Sequence[float]) -> tirx.Expr:
    """Evaluate a polynomial of `x`, a variable, by Horner's rule; coefficients from the lowest on."""
    total = like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = fma(total, x, like(x, coefficient))
    return total


def like(x: tirx.Expr, value: float) -> tirx.Expr:
    """Return `value` in each lane of a vector like `x`."""
    return broadcast(tirx.const(value, "float32"), _lanes(x))


def at_least(x: tirx.Expr, low: float) -> tirx.Expr:
    """Return the larger one; NaN where `x` is NaN, which `tirx.max` may lose."""
    return tirx.Select(x < like(x, low), like(x, low), x)


def at_most(x: tirx.Expr, high: float) -> tirx.Expr:
    """Return the smaller one; NaN where `x` is NaN, which `tirx.min` may lose."""
    return tirx.Select(x > like(x, high), like(x, high), x)


def absolute(x: tirx.Expr) -> tirx.Expr:
    return _float(_bits(x) & _ints(x, ~_SIGN))


def with_sign(size: tirx.Expr, x: tirx.Expr) -> tirx.Expr:
    """Return `size` with the sign of `x`; whatever sign `size` has is dropped."""
    return _float((_bits(size) & _ints(x, ~_SIGN)) | (_bits(x) & _ints(x, _SIGN)))


class _Names:
    """Names for values that are used more than once, so that an expression stays small."""

    def __init__(self) -> None:
        self._bound: list[tuple[tirx.Var, tirx.Expr]] = []

    def __call__(self, value: tirx.Expr) -> tirx.Var:
        self._bound.append((tirx.Var("v", value.ty), value))
        return self._bound[-1][0]

    def over(self, body: tirx.Expr) -> tirx.Expr:
        """Return `body`, in which the names stand for their values."""
        for variable, value in reversed(self._bound):
            body = tirx.Let(variable, value, body)
        return body


def _expm1_nonpositive(x: tirx.Expr, name: _Names) -> tirx.Expr:
    """Return e**x - 1 for x from -18 to 0, its relative error small near 0 too."""
    x = name(x)
    shifted = name(fma(x, like(x, _LOG2_E), like(x, _ROUND + _BIAS)))
    rest = name(fma(shifted - like(x, _ROUND + _BIAS), like(x, -_LN2), x))
    scale = name(_float(_bits(shifted) << _ints(x, _MANTISSA)))
    power = fma(polynomial(rest, _EXPM1), rest * rest, rest)
    return fma(scale, power, scale - like(x, 1))


def _exp_of_rest(rest: tirx.Expr, coefficients: Sequence[float]) -> tirx.Expr:
    return polynomial(rest, (1.0, 1.0, *coefficients))


def _power_of_two(n: tirx.Expr) -> tirx.Expr:
    return _float((n + _ints(n, _BIAS)) << _ints(n, _MANTISSA))


def _bits(x: tirx.Expr) -> tirx.Expr:
    return tirx.reinterpret(_type("int32", x), x)


def _float(bits: tirx.Expr) -> tirx.Expr:
    return tirx.reinterpret(_type("float32", bits), bits)


def _ints(x: tirx.Expr, value: int) -> tirx.Expr:
    return broadcast(tirx.const(value, "int32"), _lanes(x))


def _type(scalar: str, x: tirx.Expr) -> str:
    """Return the name of the vector type of `scalar` with as many lanes as `x`."""
    lanes = _lanes(x)
    return f"{scalar}x{lanes}" if lanes > 1 else scalar


def _lanes(x: tirx.Expr) -> int:
    return int(x.ty.dtype.lanes)
