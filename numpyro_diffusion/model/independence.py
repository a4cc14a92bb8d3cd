r"""Whether the elements of a plate can be filtered one by one: proved from the model's operations.

When all diffusion sites share one batch shape E (a plate) and log r is a sum of terms of one element each,
log r(x) = shared + sum_i log r_i(x_i), the posterior factorises. That is a property of the program that computes the
terms, and is read off it: every array of the program either does not depend on x, or *keeps the elements apart* along
one of its axes (what stands at index i depends on x_i alone), or neither is known. An operation says what its results
are from what its inputs are, as JAX's own batching does:

    elementwise           keeps them apart where all its inputs do, along the same axis
    sum, maximum, sort    keep them apart over other axes than theirs
    matrix product        keeps them apart along its batch axes, and along free axes if the other factor is fixed
    reverse, gather       keep them apart where they leave the axis as it is
    loops, branches       by their bodies, if neither length nor choice depends on x

"Not known" is a right answer: then the elements are filtered together. No random state is tried, for no number of
trials proves independence.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from .._compat.jax import scan_parts
from .._typing import Array, Shape

__all__ = ["by_element", "has_elements", "why_coupled"]


class _Coupled(NamedTuple):
    """Nothing is known of the elements, and why."""

    reason: str


_State: TypeAlias = int | _Coupled | None  # the axis that keeps elements apart; None: does not depend on x
_Rule: TypeAlias = Callable[[Any, list[_State]], list[_State]]


def by_element(log_prob: Array, shape: Shape) -> Array | None:
    """A site's log_prob summed to the elements' shape; None if it has no axis of the elements."""
    if not has_elements(log_prob.shape, shape):
        return None
    log_prob = log_prob.sum(tuple(range(log_prob.ndim - len(shape))))
    ones = tuple(axis for axis, size in enumerate(shape) if size == 1)
    return log_prob.sum(ones, keepdims=True)


def has_elements(log_prob_shape: Shape, shape: Shape) -> bool:
    """Whether a log_prob ends in the elements' axes; those of size 1 may be a plate that x is not in."""
    trailing = log_prob_shape[len(log_prob_shape) - len(shape) :] if len(log_prob_shape) >= len(shape) else None
    return trailing is not None and all(size in (1, found) for size, found in zip(shape, trailing, strict=True))


def why_coupled(jaxpr: Any, is_x: Sequence[bool], outputs: Mapping[int, str], shape: Shape) -> str:
    """Why elements are not proved to be independent, in words; empty if they are.

    Args:
        jaxpr: the program.
        is_x: of each input, whether it is a diffusion site's value, of shape (E..., ...).
        outputs: index -> name of the results that are log densities, which end in the elements' axes.
        shape: E.
    """
    for axis, size in enumerate(shape):
        if size == 1:
            continue
        found = _walk(jaxpr, [axis if flag else None for flag in is_x])
        for index, name in outputs.items():
            state, ndim = found[index], len(jaxpr.outvars[index].aval.shape)
            if isinstance(state, _Coupled):
                return f"at site {name!r}, {state.reason}"
            if state not in (None, ndim - len(shape) + axis):
                return f"site {name!r} has the elements along another axis"
    return ""


def _walk(jaxpr: Any, inputs: list[_State]) -> list[_State]:
    """States of a program's results from those of its inputs."""
    states: dict[Any, _State] = dict(zip(jaxpr.invars, inputs, strict=True))

    def state(atom: Any) -> _State:
        return None if hasattr(atom, "val") else states.get(atom)  # literals and constants depend on nothing

    for equation in jaxpr.eqns:
        before = [state(atom) for atom in equation.invars]
        states.update(zip(equation.outvars, _apply(equation, before), strict=True))
    return [state(atom) for atom in jaxpr.outvars]


def _apply(equation: Any, before: list[_State]) -> list[_State]:
    if all(state is None for state in before):
        return [None] * len(equation.outvars)
    name = equation.primitive.name
    rule = _RULES.get(name)
    if name in _LOOPS:
        return _LOOPS[name](equation, before)
    coupled = next((state for state in before if isinstance(state, _Coupled)), None)
    if coupled is None and rule is None:
        coupled = _Coupled(f"the operation {name} is not known to keep the elements apart")
    if coupled is not None or rule is None:
        return [coupled] * len(equation.outvars)
    try:
        return rule(equation, before)
    except (AttributeError, IndexError, KeyError, ValueError):  # parameters of another version of JAX: not proved
        return [_Coupled(f"the operation {name} is not known to keep the elements apart")] * len(equation.outvars)


def _join(one: _State, other: _State) -> _State:
    """What holds of an array that is one or the other, or is made of both coordinate by coordinate.

    Of two reasons the first is kept: in a loop that exchanges its carries the latter would change for ever.
    """
    if isinstance(one, _Coupled) or other is None or one == other:
        return one
    if one is None or isinstance(other, _Coupled):
        return other
    return _Coupled("elements meet each other across two axes")


def _ndim(atom: Any) -> int:
    return len(atom.aval.shape)


def _over(equation: Any) -> _Coupled:
    return _Coupled(f"{equation.primitive.name} goes over the elements of the plate")


# Rules: of inputs that depend on x along a known axis, or not at all ------------------------------------------------


def _elementwise(equation: Any, before: list[Any]) -> list[_State]:
    joined: _State = None
    for atom, state in zip(equation.invars, before, strict=True):
        if state is not None and _ndim(atom) != _ndim(equation.outvars[0]):
            return [_over(equation)] * len(equation.outvars)
        joined = _join(joined, state)
    return [joined] * len(equation.outvars)


def _broadcast(equation: Any, before: list[Any]) -> list[_State]:
    return [equation.params["broadcast_dimensions"][before[0]]]


def _reshape(equation: Any, before: list[Any]) -> list[_State]:
    old, new, axis = equation.invars[0].aval.shape, equation.outvars[0].aval.shape, before[0]
    order = equation.params["dimensions"]  # in which the axes are read; None for their own
    if order is not None:
        old, axis = [old[place] for place in order], list(order).index(axis)
    ahead = 1
    for size in old[:axis]:
        ahead *= size
    product = 1
    for place, size in enumerate(new):
        if product == ahead and size == old[axis]:
            return [place]
        product *= size
    return [_Coupled("a reshape merges the elements with another axis")]


def _transpose(equation: Any, before: list[Any]) -> list[_State]:
    return [list(equation.params["permutation"]).index(before[0])]


def _without(axis: int, removed: Sequence[int]) -> int:
    return axis - sum(other < axis for other in removed)


def _squeeze(equation: Any, before: list[Any]) -> list[_State]:
    return [_without(before[0], equation.params["dimensions"])]


def _reduce(equation: Any, before: list[Any]) -> list[_State]:
    axes = equation.params.get("axes", equation.params.get("dimensions"))
    joined: _State = None
    for state in before:
        joined = _join(joined, state)
    if isinstance(joined, _Coupled) or joined in axes:
        return [joined if isinstance(joined, _Coupled) else _over(equation)] * len(equation.outvars)
    return [None if joined is None else _without(joined, axes)] * len(equation.outvars)


def _along(parameter: str) -> _Rule:
    """An operation along one axis, which leaves the others as they are."""

    def rule(equation: Any, before: list[Any]) -> list[_State]:
        axis = equation.params.get(parameter, -1) % _ndim(equation.invars[0])
        joined: _State = None
        for state in before:
            joined = _join(joined, state)
        return [_over(equation) if joined == axis else joined] * len(equation.outvars)

    return rule


def _reverse(equation: Any, before: list[Any]) -> list[_State]:
    return [_over(equation) if before[0] in equation.params["dimensions"] else before[0]]


def _pad(equation: Any, before: list[Any]) -> list[_State]:
    axis = before[0]
    if before[1] is not None or axis is None or tuple(equation.params["padding_config"][axis]) != (0, 0, 0):
        return [_over(equation)]
    return [axis]


def _stack(equation: Any, before: list[Any]) -> list[_State]:
    axis = equation.params["axis"]
    joined: _State = None
    for state in before:
        joined = _join(joined, state)
    return [joined + (joined >= axis) if isinstance(joined, int) else joined]


def _unstack(equation: Any, before: list[Any]) -> list[_State]:
    axis = equation.params["axis"]
    kept = _over(equation) if before[0] == axis else _without(before[0], [axis])
    return [kept] * len(equation.outvars)


def _tile(equation: Any, before: list[Any]) -> list[_State]:
    return [before[0] if equation.params["reps"][before[0]] == 1 else _over(equation)]


def _slice(equation: Any, before: list[Any]) -> list[_State]:
    axis, params = before[0], equation.params
    size = equation.invars[0].aval.shape[axis]
    whole = params["start_indices"][axis] == 0 and params["limit_indices"][axis] == size
    stride = 1 if params["strides"] is None else params["strides"][axis]
    return [axis if whole and stride == 1 else _over(equation)]


def _dynamic_slice(equation: Any, before: list[Any]) -> list[_State]:
    axis, *starts = before
    if axis is None or any(start is not None for start in starts):
        return [_Coupled("a slice begins where x says")]
    whole = equation.params["slice_sizes"][axis] == equation.invars[0].aval.shape[axis]
    return [axis if whole else _over(equation)]


def _dynamic_update_slice(equation: Any, before: list[Any]) -> list[_State]:
    operand, update, *starts = before
    axis = _join(operand, update)
    if isinstance(axis, _Coupled) or any(start is not None for start in starts):
        return [_Coupled("a slice is written where x says, or across elements")]
    shapes = [atom.aval.shape for atom in equation.invars[:2]]
    return [axis if shapes[0][axis] == shapes[1][axis] else _over(equation)]


def _gather(equation: Any, before: list[Any]) -> list[_State]:
    operand, indices = before
    numbers, out_ndim = equation.params["dimension_numbers"], _ndim(equation.outvars[0])
    operand_batch = tuple(getattr(numbers, "operand_batching_dims", ()))
    index_batch = tuple(getattr(numbers, "start_indices_batching_dims", ()))
    batch_places = [axis for axis in range(out_ndim) if axis not in numbers.offset_dims]  # of the indices' axes
    if operand is None:
        is_batch = indices < _ndim(equation.invars[1]) - 1
        return [batch_places[indices] if is_batch else _over(equation)]
    if operand in operand_batch:
        index_axis = index_batch[operand_batch.index(operand)]
        return [batch_places[index_axis] if indices in (None, index_axis) else _over(equation)]
    whole = equation.params["slice_sizes"][operand] == equation.invars[0].aval.shape[operand]
    if indices is not None or not whole or operand in numbers.collapsed_slice_dims:
        return [_Coupled("a gather takes elements by an index")]
    kept = [a for a in range(_ndim(equation.invars[0])) if a not in (*numbers.collapsed_slice_dims, *operand_batch)]
    return [numbers.offset_dims[kept.index(operand)]]


def _scatter(equation: Any, before: list[Any]) -> list[_State]:
    operand, indices, updates = before
    numbers = equation.params["dimension_numbers"]
    removed = (*numbers.inserted_window_dims, *getattr(numbers, "operand_batching_dims", ()))
    kept = [axis for axis in range(_ndim(equation.invars[0])) if axis not in removed]
    if operand is None:
        operand = next((kept[i] for i, axis in enumerate(numbers.update_window_dims) if axis == updates), None)
    is_apart = operand in kept and operand not in numbers.scatter_dims_to_operand_dims and indices is None
    if not is_apart:
        return [_Coupled("a scatter writes elements by an index")]
    window = numbers.update_window_dims[kept.index(operand)]
    whole = equation.invars[2].aval.shape[window] == equation.invars[0].aval.shape[operand]
    return [operand if whole and updates in (None, window) else _over(equation)]


def _dot(equation: Any, before: list[Any]) -> list[_State]:
    contracting, batch = equation.params["dimension_numbers"]
    left, right = before
    if left is not None and right is not None:
        paired = list(zip(*batch, strict=True))
        return [paired.index((left, right)) if (left, right) in paired else _over(equation)]
    side, axis = (0, left) if left is not None else (1, right)
    if axis in batch[side]:
        return [list(batch[side]).index(axis)]
    if axis in contracting[side]:
        return [_over(equation)]
    free = [
        [a for a in range(_ndim(atom)) if a not in (*contracting[s], *batch[s])]
        for s, atom in enumerate(equation.invars[:2])
    ]
    return [len(batch[0]) + (len(free[0]) if side else 0) + free[side].index(axis)]


def _convolution(equation: Any, before: list[Any]) -> list[_State]:
    numbers = equation.params["dimension_numbers"]
    is_batch = before[0] == numbers.lhs_spec[0] and before[1] is None and equation.params["batch_group_count"] == 1
    return [numbers.out_spec[0] if is_batch else _over(equation)]


def _matrices(equation: Any, before: list[Any]) -> list[_State]:
    """Linear algebra over the last two axes."""
    joined: _State = None
    for atom, state in zip(equation.invars, before, strict=True):
        if state is not None and (isinstance(state, _Coupled) or state >= _ndim(atom) - 2):
            return [_over(equation)] * len(equation.outvars)
        joined = _join(joined, state)
    return [joined] * len(equation.outvars)


def _fft(equation: Any, before: list[Any]) -> list[_State]:
    axis = before[0]
    is_apart = isinstance(axis, int) and axis < _ndim(equation.invars[0]) - len(equation.params["fft_lengths"])
    return [axis if is_apart else _over(equation)]


# Programs inside: these take coupled inputs too, for not every result depends on them ------------------------------


def _body(value: Any) -> Any:
    return getattr(value, "jaxpr", value)


def _call(equation: Any, before: list[_State]) -> list[_State]:
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if name in equation.params and hasattr(_body(equation.params[name]), "eqns"):
            return _walk(_body(equation.params[name]), before)
    return [_Coupled(f"the body of {equation.primitive.name} is not known")] * len(equation.outvars)


def _fixed_point(step: Callable[[list[_State]], list[_State]], carry: list[_State]) -> list[_State]:
    """The states of a loop's carry, whatever the number of its rounds."""
    while True:
        after = [_join(one, other) for one, other in zip(carry, step(carry), strict=True)]
        if after == carry:
            return carry
        carry = after


def _scan(equation: Any, before: list[_State]) -> list[_State]:
    body = _body(equation.params["jaxpr"])
    num_consts, num_carry = scan_parts(equation)
    consts, carry, rows = before[:num_consts], before[num_consts:][:num_carry], before[num_consts + num_carry :]
    over = _Coupled("a scan goes over the elements of the plate")
    inside = [over if row == 0 else row - 1 if isinstance(row, int) else row for row in rows]
    carry = _fixed_point(lambda carry: _walk(body, [*consts, *carry, *inside])[:num_carry], carry)
    stacked = _walk(body, [*consts, *carry, *inside])[num_carry:]
    return [*carry, *(state + 1 if isinstance(state, int) else state for state in stacked)]


def _while(equation: Any, before: list[_State]) -> list[_State]:
    params = equation.params
    num_cond, num_body = params["cond_nconsts"], params["body_nconsts"]
    cond_consts, body_consts, carry = before[:num_cond], before[num_cond:][:num_body], before[num_cond + num_body :]
    carry = _fixed_point(lambda carry: _walk(_body(params["body_jaxpr"]), [*body_consts, *carry]), carry)
    (goes_on,) = _walk(_body(params["cond_jaxpr"]), [*cond_consts, *carry])
    if goes_on is not None:
        return [_Coupled("a loop is as long as x says")] * len(carry)
    return carry


def _cond(equation: Any, before: list[_State]) -> list[_State]:
    choice, *operands = before
    if choice is not None:
        return [_Coupled("a branch is taken as x says")] * len(equation.outvars)
    joined: list[_State] = [None] * len(equation.outvars)
    for branch in equation.params["branches"]:
        joined = [_join(one, other) for one, other in zip(joined, _walk(_body(branch), operands), strict=True)]
    return joined


_ELEMENTWISE = """
    abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp clz complex conj
    convert_element_type copy copy_p cos cosh digamma div eq eq_to erf erf_inv erfc exp exp2 expm1 floor ge gt igamma
    igamma_grad_a igammac imag integer_pow is_finite le le_to lgamma log log1p logistic lt lt_to max min mul ne neg
    nextafter not or polygamma population_count pow random_gamma_grad real reduce_precision regularized_incomplete_beta
    rem round rsqrt select_n shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt square
    stop_gradient sub tan tanh xor zeta
"""
_REDUCE = "argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum reduce_xor"
_MATRICES = "cholesky eigh geqrf householder_product lu qr svd triangular_solve"
_SCATTER = "scatter scatter-add scatter_add scatter_max scatter_min scatter_mul"
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(_ELEMENTWISE.split(), _elementwise),
    **dict.fromkeys(_REDUCE.split(), _reduce),
    **dict.fromkeys("cumlogsumexp cummax cummin cumprod cumsum split".split(), _along("axis")),  # noqa: SIM905
    **dict.fromkeys(_MATRICES.split(), _matrices),
    **dict.fromkeys(_SCATTER.split(), _scatter),
    "broadcast_in_dim": _broadcast,
    "concatenate": _along("dimension"),
    "conv_general_dilated": _convolution,
    "dot_general": _dot,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "fft": _fft,
    "gather": _gather,
    "pad": _pad,
    "reshape": _reshape,
    "rev": _reverse,
    "slice": _slice,
    "sort": _along("dimension"),
    "squeeze": _squeeze,
    "stack": _stack,
    "tile": _tile,
    "top_k": _along("axis"),
    "transpose": _transpose,
    "unstack": _unstack,
}
_CALLS = """
    checkpoint closed_call core_call custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr jit pjit remat remat2
"""
_LOOPS: dict[str, _Rule] = {**dict.fromkeys(_CALLS.split(), _call), "cond": _cond, "scan": _scan, "while": _while}
