r"""Whether a kernel's last step erases the data that it is given.

The rule of :func:`~numpyro_diffusion.schedules.check_signal_erased` takes the data's scale; here it is the root mean
square of the data, mean included, because what survives of the mean costs as much as what survives of the spread.

Not assumed: that all data are at hand. A batch is enough.
"""

import numpy as np

from ._typing import ArrayLike
from .kernels import Kernel
from .schedules import check_signal_erased

__all__ = ["check_data_erased"]


def check_data_erased(kernel: Kernel, x: ArrayLike) -> None:
    """Warn when the kernel's last step still shows the data.

    Args:
        kernel: with a concrete schedule. One of discrete states is not judged: its remaining signal is bounded by
            abar_T alone.
        x: data in the units of the kernel, any shape.
    """
    if not kernel.is_discrete:
        check_signal_erased(kernel.schedule, float(np.sqrt(np.mean(np.square(np.asarray(x, np.float64))))))
