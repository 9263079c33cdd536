"""A 64-byte vector type for Numba, and its arithmetic.

Numba vectorises a loop only when it can prove that no two arrays overlap, which it cannot for a
kernel with many arrays. Measured on the backward kernel of the selective scan, the same mathematics
is 15 times faster written with this type, whose values stay in vector registers. A `Lanes` value
holds one quantity of 16 (float32) or 8 (float64) independent channels.

Indices count elements of a flat, C-contiguous array. Nothing is checked: callers must stay inside
their arrays.
"""

import hashlib
import math
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

VECTOR_BYTES = 64
# Lets the compiler fuse a multiplication with an addition. Nothing else is relaxed, so NaN and
# infinity are kept.
_FLAGS = ("contract",)
_SOURCES = hashlib.sha256(
    b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
).hexdigest()[:12]


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile with Numba, without the GIL, and cache on disk where possible.

    Numba recompiles when the file of `function` changes, but does not notice changes in other files
    of functions that it calls. So the name under which the machine code is stored contains a digest
    of this room.
    """
    function.__qualname__ += "_" + _SOURCES
    # With numpy's error model a division by zero gives infinity. Python's would need a branch for
    # each division.
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": set(_FLAGS)}
    try:
        return njit(function, cache=True, **options)
    except RuntimeError:  # neither the package's folder nor the user's cache folder is writable
        return njit(function, **options)


class Lanes(types.Type):
    """The vector type of a scalar type, as a type of Numba."""

    def __init__(self, scalar: types.Float) -> None:
        self.scalar = scalar
        self.count = 8 * VECTOR_BYTES // scalar.bitwidth
        super().__init__(name=f"Lanes({scalar})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, lanes: Lanes) -> None:
        element = ir.FloatType() if lanes.scalar.bitwidth == 32 else ir.DoubleType()
        super().__init__(manager, lanes, ir.VectorType(element, lanes.count))


def _is_float32(vector: ir.VectorType) -> bool:
    return isinstance(vector.element, ir.FloatType)


def _constant(vector: ir.VectorType, value: float) -> ir.Constant:
    return ir.Constant(vector, [value] * vector.count)


def _mask(lanes: list[int]) -> ir.Constant:
    return ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes)


def _splat(builder: ir.IRBuilder, vector: ir.VectorType, value: ir.Value) -> ir.Value:
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, undefined, _mask([0] * vector.count))


def _address(
    context: Any, builder: ir.IRBuilder, array_type: Any, array: ir.Value, index: ir.Value
) -> ir.Value:
    """Return a pointer to the vector at element `index` of a flat array."""
    vector = context.get_value_type(Lanes(array_type.dtype))
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


@intrinsic
def lane_count(typing: Any, array: Any) -> Any:
    """Return the number of lanes for the dtype of an array.

    It is a constant, but Numba does not see that; it would specialise on it.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return context.get_constant(types.intp, Lanes(array.dtype).count)

    return types.intp(array), generate


@intrinsic
def load(typing: Any, array: Any, index: types.Integer) -> Any:
    """Load array[index : index + lanes]."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        pointer = _address(context, builder, signature.args[0], *args)
        # Only the alignment of an element holds: a row may start at any element, and an aligned
        # load of 64 bytes can fault there.
        return builder.load(pointer, align=array.dtype.bitwidth // 8)

    return Lanes(array.dtype)(array, types.intp), generate


@intrinsic
def store(typing: Any, array: Any, index: types.Integer, value: Lanes) -> Any:
    """Store value: array[index : index + lanes] = value."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        pointer = _address(context, builder, signature.args[0], *args[:2])
        builder.store(args[2], pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), generate


@intrinsic
def splat(typing: Any, scalar: types.Float) -> Any:
    """Put the same number into every lane."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return _splat(builder, context.get_value_type(signature.return_type), args[0])

    return Lanes(scalar)(scalar), generate


@intrinsic
def lane_sum(typing: Any, x: Lanes) -> Any:
    """Sum over the lanes, in no particular order."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        vector = args[0].type
        name = f"llvm.vector.reduce.fadd.v{vector.count}f{x.scalar.bitwidth}"
        kind = ir.FunctionType(vector.element, [vector.element, vector])
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        # -0.0 is neutral in a sum (0.0 would turn -0.0 into 0.0). "reassoc" allows a tree of
        # log2(lanes) additions; without it, the lanes are added one after the other.
        return builder.call(
            function, [ir.Constant(vector.element, -0.0), args[0]], fastmath=("reassoc",)
        )

    return x.scalar(x), generate


@intrinsic
def where_less(typing: Any, x: Lanes, limit: types.Float, below: Lanes, otherwise: Lanes) -> Any:
    """Select `below` where x < limit, else `otherwise`.

    `otherwise` is also the result where x is NaN.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        limit = context.cast(builder, args[1], signature.args[1], x.scalar)
        # An ordered comparison is false where x is NaN.
        mask = builder.fcmp_ordered("<", args[0], _splat(builder, args[0].type, limit))
        return builder.select(mask, args[2], args[3])

    return x(x, limit, x, x), generate


def _polynomial(builder: ir.IRBuilder, x: ir.Value, coefficients: list[float]) -> ir.Value:
    """Evaluate a polynomial by Horner's rule, highest power first."""
    total = _constant(x.type, coefficients[0])
    for coefficient in coefficients[1:]:
        # One multiplication and one addition per coefficient; the flags let them become one
        # instruction with one rounding.
        total = builder.fadd(
            builder.fmul(total, x, flags=_FLAGS), _constant(x.type, coefficient), flags=_FLAGS
        )
    return total


def _exp2_series(degree: int) -> list[float]:
    """Compute coefficients of a polynomial for 2^r on [-1/2, 1/2].

    It is the truncated Chebyshev series; the highest power comes first.

    Source: Abramowitz & Stegun, 9.6.34: e^(a t) = I_0(a) + 2 sum_k I_k(a) T_k(t).
    """
    # 2^r = e^(a t) with t = 2 r in [-1, 1] and a = (log 2) / 2.
    a = math.log(2) / 2
    # The degrees that `exp2` takes are the least whose first omitted term, 2 I_{degree+1}(a), is
    # below half a unit in the last place of 1: 1.9e-9 in float32, 3.1e-18 in float64. Nine terms of
    # the power series of I_k suffice for float64, since (a / 2)^2 is 0.03.
    bessel = [
        sum((a / 2) ** (2 * m + k) / (math.factorial(m) * math.factorial(m + k)) for m in range(9))
        for k in range(degree + 1)
    ]
    # From Chebyshev polynomials in t to powers of t, then t^k = 2^k r^k.
    powers = np.polynomial.chebyshev.cheb2poly([bessel[0], *(2 * value for value in bessel[1:])])
    return [float(c) * 2.0**k for k, c in enumerate(powers)][::-1]


@intrinsic
def exp2(typing: Any, x: Lanes) -> Any:
    """Compute 2^x to about one unit in the last place.

    The result is 0 below the normal range, infinity above it, NaN for NaN.

    x = k + r with an integer k and |r| <= 1/2, a polynomial for 2^r, and 2^k made from its bits.
    Adding 1.5 * 2^23 (float64: 2^52) rounds to an integer and leaves it in the low bits of the sum;
    with the exponent's bias added, these are the exponent bits of 2^k.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        (x,), vector = args, args[0].type
        single = _is_float32(vector)
        low, high, mantissa, bias, degree = (
            (-127.0, 128.4, 23, 127, 6) if single else (-1023.0, 1024.4, 52, 1023, 11)
        )
        # The limits keep k + bias within the exponent's bits, from 0 (the bits of 0) to all ones
        # (infinity). 128.4 rounds to 128; 129 would reach the sign bit. NaN passes both
        # comparisons.
        for operation, limit in (("<", _constant(vector, low)), (">", _constant(vector, high))):
            x = builder.select(builder.fcmp_ordered(operation, x, limit), limit, x)
        # Near 1.5 * 2^mantissa neighbouring numbers differ by 1, so the sum is rounded to an
        # integer. The factor is 1.5 because a negative x would take a sum near 2^mantissa below it,
        # where the spacing is 1/2.
        magic = _constant(vector, 1.5 * 2**mantissa + bias)
        shifted = builder.fadd(x, magic)
        # Exact: x and k = shifted - magic are multiples of the spacing of x, and |x - k| <= 1/2.
        remainder = builder.fsub(x, builder.fsub(shifted, magic))
        integer = ir.VectorType(ir.IntType(32 if single else 64), vector.count)
        power = builder.bitcast(
            builder.shl(builder.bitcast(shifted, integer), _constant(integer, mantissa)), vector
        )
        return builder.fmul(_polynomial(builder, remainder, _exp2_series(degree)), power)

    return x(x), generate


@intrinsic
def log1p_unit(typing: Any, x: Lanes) -> Any:
    """Compute log(1 + x) for x in [0, 1], to a few last-place units.

    It is 2 artanh(z) with z = x / (2 + x) <= 1/3, as a series.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        (x,), vector = args, args[0].type
        # 2 artanh(z) = 2 z (1 + z^2/3 + z^4/5 + ...); z <= 1/3 makes the series converge fast.
        z = builder.fdiv(x, builder.fadd(x, _constant(vector, 2.0)))
        # The first omitted term, relative to the first, is z^(2 terms + 2) / (2 terms + 3) <=
        # 1.4e-8 in float32 and 1.8e-18 in float64, below half a unit in the last place.
        terms = 6 if _is_float32(vector) else 16
        series = _polynomial(
            builder, builder.fmul(z, z), [2 / (2 * j + 1) for j in range(terms, -1, -1)]
        )
        return builder.fmul(z, series)

    return x(x), generate


def _transposition(builder: ir.IRBuilder, vector: ir.VectorType) -> ir.Function:
    """Define a function (source, pitch, target, step) that transposes a block.

    It takes log2(lanes) rounds of interleaving row i with row i + lanes / 2. It is never inlined: a
    kernel calls it in many places, and its 64 shuffles would make up most of the code to compile.
    """
    pointer, integer, count = vector.as_pointer(), ir.IntType(64), vector.count
    kind = ir.FunctionType(ir.VoidType(), [vector.element.as_pointer(), integer] * 2)
    function = cgutils.get_or_insert_function(
        builder.module, kind, f"landscape_transpose_{vector.element.intrinsic_name}"
    )
    if not function.is_declaration:
        return function
    function.linkage = "internal"
    function.attributes.add("noinline")
    body = ir.IRBuilder(function.append_basic_block())
    source, pitch, target, step = function.args
    align = 4 if _is_float32(vector) else 8

    def row(start: ir.Value, stride: ir.Value, i: int) -> ir.Value:
        return body.bitcast(body.gep(start, [body.mul(stride, integer(i))]), pointer)

    rows = [body.load(row(source, pitch, i), align=align) for i in range(count)]
    half = count // 2
    masks = [
        _mask([(j // 2) + (j % 2) * count + start for j in range(count)]) for start in (0, half)
    ]
    # A round moves the element at (row, column) to the place whose bits, row before column, are
    # rotated left by one. After log2(lanes) rounds, row and column have changed places.
    for _ in range(half.bit_length()):
        rows = [
            body.shuffle_vector(rows[i], rows[i + half], mask)
            for i in range(half)
            for mask in masks
        ]
    for i, values in enumerate(rows):
        body.store(values, row(target, step, i), align=align)
    body.ret_void()
    return function


@intrinsic
def transpose(
    typing: Any,
    source: Any,
    first: types.Integer,
    pitch: types.Integer,
    target: Any,
    to: types.Integer,
    step: types.Integer,
) -> Any:
    """Transpose a square block.

    target[to + j * step + i] = source[first + i * pitch + j] for i, j < lanes.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        source_type, _, _, target_type, _, _ = signature.args
        addresses = [
            builder.gep(context.make_array(kind)(context, builder, array).data, [index])
            for kind, array, index in (
                (source_type, args[0], args[1]),
                (target_type, args[3], args[4]),
            )
        ]
        function = _transposition(builder, context.get_value_type(Lanes(source.dtype)))
        builder.call(function, [addresses[0], args[2], addresses[1], args[5]])
        return context.get_dummy_value()

    ints = types.intp
    return types.void(source, ints, ints, target, ints, ints), generate


def _operator(instruction: str) -> Callable[..., Any]:
    @intrinsic
    def combine(typing: Any, x: Lanes, y: Lanes) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            return getattr(builder, instruction)(*args, flags=_FLAGS)

        return x(x, y), generate

    return combine


def _define(symbol: Callable[[Any, Any], Any], instruction: str) -> None:
    """Define a Python operator on Lanes, and on a number with Lanes."""
    combine = _operator(instruction)

    # Numba compares this signature, annotations included, with those of the lambdas.
    @overload(symbol)
    def implementation(x, y):  # type: ignore[no-untyped-def]
        if isinstance(x, Lanes) and isinstance(y, Lanes):
            return lambda x, y: combine(x, y)
        if isinstance(x, Lanes) and isinstance(y, types.Number):
            left = x.scalar
            return lambda x, y: combine(x, splat(left(y)))
        if isinstance(x, types.Number) and isinstance(y, Lanes):
            right = y.scalar
            return lambda x, y: combine(splat(right(x)), y)
        return None


for _symbol, _instruction in {
    operator.add: "fadd",
    operator.sub: "fsub",
    operator.mul: "fmul",
    operator.truediv: "fdiv",
}.items():
    _define(_symbol, _instruction)
