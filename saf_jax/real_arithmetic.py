"""The same computation without complex numbers and without a choice of platform, for runtimes that know neither."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core


class Pair(NamedTuple):
    """A complex array as two real ones."""

    real: jax.Array
    imaginary: jax.Array


def in_real_arithmetic(function: Callable) -> Callable:
    """Rewrites a function of real arrays that has complex numbers inside.

    Every complex array becomes a pair of real ones, Fourier transforms become products with the matrices of cosines and
    sines, calls are written out, and `lax.platform_dependent` takes its default.

    Args:
      function: pure; arguments and results are pytrees of real arrays.

    Returns:
      A function of the same arguments and results; to be traced (by jit or an exporter), not to be called as it is.
    """

    def rewritten(*args: Any) -> Any:
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        outputs = _evaluate(closed, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return rewritten


def _evaluate(closed: core.ClosedJaxpr, args: list[Any]) -> list[Any]:
    jaxpr = closed.jaxpr
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*closed.consts, *args]))

    def read(atom: Any) -> Any:
        value = np.asarray(atom.val, atom.aval.dtype) if isinstance(atom, core.Literal) else values[atom]
        # A constant: split here, since exporters have no complex ones.
        constant = isinstance(value, np.ndarray) and np.iscomplexobj(value)
        return Pair(np.real(value), np.imag(value)) if constant else value

    for equation in jaxpr.eqns:
        results = _apply(equation, [read(atom) for atom in equation.invars])
        values.update(zip(equation.outvars, results))
    return [read(atom) for atom in jaxpr.outvars]


def _apply(equation: core.JaxprEqn, args: list[Any]) -> list[Any]:
    name, params = equation.primitive.name, equation.params
    if name == "platform_index":
        # The default is the last of the branches.
        return [np.int32(len(params["platforms"]) - 1)]
    if name == "cond" and isinstance(args[0], np.integer):
        return _evaluate(params["branches"][args[0]], args[1:])
    if name == "scan" and params["length"] == 1:
        # The step of a stream: a loop of one turn.
        kept = params["num_consts"] + params["num_carry"]
        out = _evaluate(params["jaxpr"], [*args[:kept], *(jnp.squeeze(x, 0) for x in args[kept:])])
        return [*out[: params["num_carry"]], *(jnp.expand_dims(y, 0) for y in out[params["num_carry"] :])]
    for inner in ("jaxpr", "call_jaxpr"):
        if name in ("jit", "pjit", "custom_vjp_call", "custom_jvp_call", "closed_call") and inner in params:
            return _evaluate(params[inner], args)
    if not any(isinstance(arg, Pair) for arg in args) and not _is_complex(equation.outvars[0]):
        out = equation.primitive.bind(*args, **params)
        return list(out) if equation.primitive.multiple_results else [out]
    if name not in _COMPLEX:
        raise NotImplementedError(f"{name} of complex numbers in real arithmetic")
    return [_COMPLEX[name](*args, **params)]


def _is_complex(variable: Any) -> bool:
    return jnp.issubdtype(variable.aval.dtype, jnp.complexfloating)


def _parts(x: Any) -> Pair:
    """A pair, whatever x is."""
    if isinstance(x, Pair):
        return x
    return Pair(x, jnp.zeros_like(x))


def _multiply(a: Any, b: Any, **_: Any) -> Pair:
    if not isinstance(a, Pair) or not isinstance(b, Pair):
        pair, other = (a, b) if isinstance(a, Pair) else (b, a)
        return Pair(pair.real * other, pair.imaginary * other)
    return Pair(a.real * b.real - a.imaginary * b.imaginary, a.real * b.imaginary + a.imaginary * b.real)


def _divide(a: Any, b: Any, **_: Any) -> Pair:
    b = _parts(b)
    size = b.real * b.real + b.imaginary * b.imaginary
    return _multiply(_parts(a), Pair(b.real / size, -b.imaginary / size))


def _each_part(primitive: Callable) -> Callable:
    """A primitive that is linear and moves or picks numbers: the same for both parts."""

    def apply(*args: Any, **params: Any) -> Pair:
        pairs = [_parts(arg) for arg in args]
        return Pair(primitive(*[p.real for p in pairs], **params), primitive(*[p.imaginary for p in pairs], **params))

    return apply


def _select(which: Any, *cases: Any, **_: Any) -> Pair:
    pairs = [_parts(case) for case in cases]
    return Pair(lax.select_n(which, *[p.real for p in pairs]), lax.select_n(which, *[p.imaginary for p in pairs]))


def _differs(a: Any, b: Any, **_: Any) -> jax.Array:
    a, b = _parts(a), _parts(b)
    return (a.real != b.real) | (a.imaginary != b.imaginary)


def _fft(x: Any, *, fft_type: Any, fft_lengths: tuple[int, ...]) -> Any:
    (length,) = fft_lengths
    bins = np.arange(length // 2 + 1)
    angle = 2 * np.pi / length * (bins * np.arange(length)[:, None] % length)
    if fft_type == lax.FftType.RFFT:
        return Pair(x @ np.cos(angle).astype(np.float32), x @ -np.sin(angle).astype(np.float32))
    if fft_type == lax.FftType.IRFFT:
        weight = np.where((bins == 0) | (2 * bins == length), 1.0, 2.0)[:, None] / length
        cosines, sines = (weight * np.cos(angle).T).astype(np.float32), (weight * np.sin(angle).T).astype(np.float32)
        return x.real @ cosines - x.imaginary @ sines
    raise NotImplementedError(f"{fft_type} in real arithmetic")


_COMPLEX: dict[str, Callable] = {
    "complex": lambda real, imaginary: Pair(real, imaginary),
    "real": lambda x: x.real,
    "imag": lambda x: x.imaginary,
    "abs": lambda x, **_: jnp.sqrt(x.real * x.real + x.imaginary * x.imaginary),
    "convert_element_type": lambda x, **_: x if isinstance(x, Pair) else _parts(jnp.asarray(x, jnp.float32)),
    "mul": _multiply,
    "div": _divide,
    "fft": _fft,
    "ne": _differs,
    "select_n": _select,
    "concatenate": lambda *args, **params: _each_part(lambda *parts: lax.concatenate(parts, **params))(*args),
    **{
        name: _each_part(getattr(lax, f"{name}_p").bind)
        for name in ("add", "sub", "neg", "broadcast_in_dim", "reshape", "slice", "squeeze", "transpose", "pad", "copy")
    },
}
