"""Register a class as a JAX pytree with named leaves and named static fields.

JAX rebuilds pytrees with placeholders, tracers and axis numbers in place of arrays, so rebuilding
must not run the constructor and its checks; ``jax.tree_util.register_dataclass`` does run it.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax

Class = TypeVar("Class", bound=type)


def register_pytree(*, data: tuple[str, ...], static: tuple[str, ...]) -> Callable[[Class], Class]:
    """Class decorator: ``data`` attributes are leaves or subtrees, ``static`` ones are hashable metadata.

    Args:
        data: attribute names that hold arrays or pytrees of arrays.
        static: attribute names that hold hashable values, compared by equality when JAX decides
            whether a compiled function can be used again.
    """

    def decorate(cls: Class) -> Class:
        def flatten_with_keys(tree: Any) -> tuple[tuple, Any]:
            children = tuple((jax.tree_util.GetAttrKey(name), getattr(tree, name)) for name in data)
            return children, tuple(getattr(tree, name) for name in static)

        def unflatten(metadata: Any, children: Any) -> Any:
            tree: Any = object.__new__(cls)
            for name, value in zip((*data, *static), (*children, *metadata), strict=True):
                object.__setattr__(tree, name, value)
            return tree

        jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten)
        return cls

    return decorate
