r"""What can be seen to be wrong with a model before the first step.

``fit`` calls ``model(batch, size)``. The loss of a batch estimates the loss of all rows only if

1. every latent site has a distribution in the guide: SVI draws any other from the model itself and learns nothing
   about it;
2. no parameter belongs to one row: neither a plate's own indices nor places in the batch are rows of the data;
3. every site that depends on the batch counts size / rows times.

What depends on the batch is read from the jaxpr of model and guide. "Does not depend" is proved; "depends" may be said
of too much, where a loop carries several values.

Not assumed: that all data are sites. What enters by ``numpyro.factor`` is scaled by whoever wrote it.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.handlers import replay

from .._checks import expected
from .._compat.numpyro import eval_provenance
from .._typing import Array, PyTree
from ..data_scale import check_data_erased
from ..diffusion import Diffusion
from ..kernels import Kernel
from ..model.trace import trace_model
from ..wrappers import find_diffusions, unmask
from .arrays import Arrays
from .sources import describe_not_finite, rows_not_finite

__all__ = ["ModelChecks"]

_SCALE_CURE = (
    "Write numpyro.plate(name, size, subsample_size=len(batch)) with the model's second argument as size, or scale the "
    "site by size / len(batch) with numpyro.handlers.scale."
)
_PAIRS_CURE = (
    "Make the guide a function of the batch; or pass batch_size=size, all rows in order, and no validation; or use "
    "numpyro's SVI with data that the plate indexes."
)

_Key = tuple[str, str]  # "guide" or "model", and the site's name


class _Site(NamedTuple):
    """What does not depend on numbers; ``fn`` holds tracers and serves by its type and shapes."""

    fn: dist.Distribution
    is_observed: bool
    is_auxiliary: bool  # a factor
    plates: dict[str, tuple[int, int, int]]  # by name: size, rows of a subsample, dimension


class ModelChecks:
    """Model and guide as traced on a batch.

    Args:
        model: called as ``model(batch, size)``.
        guide: called so, too; None for none.
        values: of ``param`` and ``mutable`` sites, by name.
        batch: some rows.
        size: rows of all the data.

    Raises:
        ValueError: for a latent diffusion that the guide does not cover; without a guide, for any latent site.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any] | None,
        values: dict[str, PyTree],
        batch: PyTree,
        size: int,
    ) -> None:
        self._model, self._guide, self._values, self._batch = model, guide, values, batch
        self._size, self._rows = size, len(jax.tree.leaves(batch)[0])
        self._sites: dict[_Key, _Site] = {}

        def outputs(batch: PyTree, position: Array) -> list[Any]:
            sites = self._trace(batch, position)
            _check_covered(sites, guide is not None)
            self._sites = {key: _static(site, sites) for key, site in _sample_sites(sites)}
            return [(site["value"], jax.tree.leaves(site["fn"])) for _, site in _sample_sites(sites)]

        found = eval_provenance(outputs, batch=batch, position=jnp.zeros((), int))
        each = list(zip(self._sites, found, strict=True))
        self._value_depends = {key: _union(value) for key, (value, _) in each}
        self._depends = {key: _union([value, fn]) for key, (value, fn) in each}
        self._numbers = jax.jit(lambda batch: _numbers(self._trace(batch, jnp.zeros((), int))))

    def check_scale(self) -> None:
        """Every site that depends on the batch must stand for all rows.

        Raises:
            ValueError: with the site, its plates and its scale.
        """
        if self._rows == self._size:
            return
        scales = self._numbers(self._batch)[0]
        for (part, name), site in self._sites.items():
            # A latent site whose prior alone looks at the batch is still one site of the whole model.
            on = self._value_depends if part == "model" and not site.is_observed else self._depends
            is_of_batch = "batch" in on[part, name] and not site.is_auxiliary
            in_plate = any(sizes[:2] == (self._size, self._rows) for sizes in site.plates.values())
            scale = float(scales[part, name])
            if is_of_batch and not in_plate and not self._is_whole(scale):
                plates = ", ".join(f"{plate!r} of {size}" for plate, (size, _, _) in site.plates.items())
                raise ValueError(
                    expected(
                        f"site {name!r} of the {part} to stand for all {self._size} rows, scale "
                        f"{self._size / self._rows:g}",
                        f"scale {scale:g} for {self._rows} rows " + (f"in plate {plates}" if plates else "in no plate"),
                        _SCALE_CURE,
                    )
                )

    def check_pairs(self) -> None:
        """No parameter of the guide may belong to one row.

        Raises:
            ValueError: with the site.
        """
        by_index = [name for (part, name), on in self._depends.items() if part == "guide" and "position" in on]
        for (part, name), on in self._depends.items():
            if {"batch", "position"} <= on:
                raise ValueError(
                    expected(
                        f"rows of the batch at site {name!r} of the {part}",
                        f"values at {by_index or [name]} that the plate's own indices pick, which are other rows",
                        _PAIRS_CURE,
                    )
                )
        for name, plate in self._by_place():
            raise ValueError(
                expected(
                    f"a distribution of the batch at site {name!r} of the guide",
                    f"one for each place in plate {plate!r}, where other rows are at every step",
                    _PAIRS_CURE,
                )
            )

    def check_finite(self, name: str, data: Arrays | None) -> None:
        """Observed values must be finite. What the model itself replaces or masks may be anything.

        Args:
            name: of the data.
            data: all rows of which are looked at, in chunks; None to look at the batch alone.

        Raises:
            ValueError: with the sites, and with the first such value, its row and its column.
        """
        sites, words = self._not_finite(self._batch), "one in the first batch"
        if data is not None:
            sites, row = self._first_bad_row(data.tree)
            words = describe_not_finite(data.tree, row, data.columns) if sites else ""
        if sites:
            raise ValueError(
                expected(
                    f"finite values at site {', '.join(sites)}",
                    f"{words} of {name}",
                    "Remove or impute such rows, mask such values, or have the model replace them before it observes "
                    "them.",
                )
            )

    def schedules(self) -> dict[str, Any]:
        """What the kernels of the model's diffusions are, by site, for JSON: a few numbers of each, not all."""
        return {name: [_describe(kernel) for kernel in found] for name, found in self._numbers(self._batch)[3].items()}

    def check_erased(self) -> None:
        """Warn where the last step of an observed diffusion still shows the data."""
        for kernel, value in self._numbers(self._batch)[2]:
            check_data_erased(kernel, value)

    def check_seen(self, data: Arrays) -> None:
        """Masks must leave something to learn from.

        Args:
            data: all rows, of which as many batches are looked at as it takes.

        Raises:
            ValueError: with the sites.
        """
        is_seen = self._numbers(self._batch)[4]
        if not is_seen or any(is_seen.values()):
            return
        for start in range(0, self._size, self._rows):
            rows = np.arange(start, start + self._rows) % self._size
            if any(self._numbers(_taken(data.tree, rows))[4].values()):
                return
        wanted = f"something that masks let through at site {', '.join(map(repr, is_seen))}"
        raise ValueError(
            expected(wanted, "False for all rows", "Nothing can be learned: a mask is True where x is seen.")
        )

    def _first_bad_row(self, data: PyTree) -> tuple[list[str], int]:
        """The first row that makes an observed site not finite, and such sites: batches of rows, then one by one."""
        rows = rows_not_finite(data)
        for start in range(0, len(rows), self._rows):
            some = rows[start : start + self._rows]
            if self._not_finite(_taken(data, np.resize(some, self._rows))):
                for row in some:
                    sites = self._not_finite(_taken(data, np.full(self._rows, row)))
                    if sites:
                        return sites, int(row)
        return [], 0

    def _not_finite(self, batch: PyTree) -> list[str]:
        return [repr(site) for site, is_finite in self._numbers(batch)[1].items() if not is_finite]

    def _is_whole(self, scale: float) -> bool:
        return math.isclose(scale, self._size / self._rows, rel_tol=1e-4)

    def _by_place(self) -> Iterator[tuple[str, str]]:
        """Latent sites, and the plate over the rows in which the guide's distribution knows places and no batch."""
        scales = self._numbers(self._batch)[0]
        for (part, name), site in self._sites.items():
            guide = self._sites.get(("guide", name))
            if part == "guide" or site.is_observed or guide is None or self._depends["guide", name]:
                continue
            for plate, (size, rows, dim) in site.plates.items():
                scaled_by_hand = size == rows and self._is_whole(float(scales[part, name]))
                if rows == self._rows and (size == self._size or scaled_by_hand) and _varies(guide.fn, dim):
                    yield name, plate

    def _trace(self, batch: PyTree, position: Array) -> dict[str, dict[str, dict]]:
        """The sites of guide and model. The indices of a plate over the rows count from ``position``."""

        def value(site: dict[str, Any]) -> Any:
            if site["type"] == "plate" and _sizes(site) == (self._size, self._rows):
                return position + jnp.arange(self._rows)
            return self._values.get(site["name"])

        guide = self._guide or (lambda *_: None)
        sites = trace_model(guide, (batch, self._size), fill=value)
        model = trace_model(replay(self._model, sites), (batch, self._size), rng_key=1, fill=value)
        return {"guide": sites, "model": model}


def _union(provenance: PyTree) -> frozenset[str]:
    return frozenset().union(*jax.tree.leaves(provenance, is_leaf=lambda leaf: isinstance(leaf, frozenset)))


def _sample_sites(sites: dict[str, dict[str, dict]]) -> Iterator[tuple[_Key, dict[str, Any]]]:
    for part, entries in sites.items():
        for name, site in entries.items():
            if site["type"] == "sample":
                yield (part, name), site


def _check_covered(sites: dict[str, dict[str, dict]], has_guide: bool) -> None:
    for (part, name), site in _sample_sites(sites):
        is_covered = part == "guide" or site["is_observed"] or name in sites["guide"] or site["infer"].get("enumerate")
        is_diffusion = bool(find_diffusions(site["fn"]))
        if is_diffusion and not is_covered and name.endswith("_unobserved"):
            # NumPyro's obs_mask makes two masked sites of one: <name>_observed and <name>_unobserved.
            cure = "Train on the rows that were seen: leave the others out of the data."
            raise ValueError(expected(f"no obs_mask at the site {name.removesuffix('_unobserved')!r}", "one", cure))
        if not is_covered and (is_diffusion or not has_guide):
            raise ValueError(
                expected(
                    f"a guide for the latent {'diffusion ' if is_diffusion else ''}site {name!r}",
                    f"one of {sorted(sites['guide'])}" if has_guide else "none",
                    "SVI would draw it from the model and learn nothing about it: pass guide=, or obs= at the site.",
                )
            )


def _static(site: dict[str, Any], sites: dict[str, dict[str, dict]]) -> _Site:
    plates = {}
    for frame in site["cond_indep_stack"]:
        plate = sites["model"].get(frame.name) or sites["guide"].get(frame.name)
        plates[frame.name] = (*(_sizes(plate) if plate else (frame.size, frame.size)), frame.dim)  # none in a scan
    return _Site(site["fn"], site["is_observed"], bool(site["infer"].get("is_auxiliary")), plates)


def _taken(data: PyTree, rows: np.ndarray) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf[rows])), data)


def _sizes(plate: dict[str, Any]) -> tuple[int, int]:
    size, rows = plate["args"]
    return size, size if rows is None else rows


def _numbers(
    sites: dict[str, dict[str, dict]],
) -> tuple[dict[_Key, Any], dict[str, Array], list[tuple[Kernel, Array]], dict[str, list[Kernel]], dict]:
    """Scales; whether observed sites are finite; observed diffusions' kernels and values; all kernels by site; whether
    masks let something through.
    """
    scales = {key: 1.0 if site["scale"] is None else site["scale"] for key, site in _sample_sites(sites)}
    observed = {name: site for (part, name), site in _sample_sites(sites) if part == "model" and site["is_observed"]}
    is_finite = {
        name: (jnp.isfinite(site["value"]) | ~unmask(site["fn"])[1]).all() & ~_has_nan(site["fn"])
        for name, site in observed.items()
    }
    diffusions = [found for site in observed.values() for found in _untransformed(site["fn"], site["value"])]
    kernels = {name: [diffusion.kernel for diffusion in found] for name, found in _model_diffusions(sites)}
    is_seen = {name: unmask(site["fn"])[1].any() for name, site in observed.items()}
    return scales, is_finite, diffusions, kernels, is_seen


def _model_diffusions(sites: dict[str, dict[str, dict]]) -> Iterator[tuple[str, tuple[Diffusion, ...]]]:
    for (part, name), site in _sample_sites(sites):
        found = find_diffusions(site["fn"])
        if part == "model" and found:
            yield name, found


def _describe(kernel: Kernel) -> dict[str, Any]:
    """Its type, its settings, and five numbers of each of its arrays: a schedule's from the first step to the last."""
    found: dict[str, Any] = {
        name: value for name, value in vars(kernel).items() if isinstance(value, (bool, int, float, str))
    }
    for path, leaf in jax.tree_util.tree_leaves_with_path(kernel):
        values = np.asarray(leaf, float).reshape(-1)
        picked = np.linspace(min(1, len(values) - 1), len(values) - 1, 5).round().astype(int)
        found[jax.tree_util.keystr(path).lstrip(".")] = [float(f"{value:.6g}") for value in values[picked]]
    return {"type": type(kernel).__name__, "num_steps": kernel.num_steps, **found}


def _has_nan(fn: dist.Distribution) -> Array:
    """Among its parameters, such as a context that came with the data."""
    floating = [leaf for leaf in jax.tree.leaves(fn) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)]
    return jnp.asarray([jnp.isnan(leaf).any() for leaf in floating], bool).any()


def _untransformed(fn: dist.Distribution, value: Array) -> Iterator[tuple[Kernel, Array]]:
    """The kernel of the diffusion that a distribution is made of, and the value in the kernel's units."""
    if isinstance(fn, Diffusion):
        yield fn.kernel, value
    elif isinstance(fn, dist.TransformedDistribution):
        yield from _untransformed(fn.base_dist, dist.transforms.ComposeTransform(fn.transforms).inv(value))
    elif isinstance(fn, dist.ExpandedDistribution | dist.Independent | dist.MaskedDistribution):
        yield from _untransformed(fn.base_dist, value)


def _varies(fn: dist.Distribution, dim: int) -> bool:
    """Whether a distribution has parameters of its own along a batch dimension, counted from the right."""
    if isinstance(fn, dist.Independent):
        return _varies(fn.base_dist, dim - fn.reinterpreted_batch_ndims)
    if isinstance(fn, dist.ExpandedDistribution | dist.MaskedDistribution):
        return _varies(fn.base_dist, dim)
    return len(fn.batch_shape) >= -dim and fn.batch_shape[dim] != 1
