"""What the settings of a layer may be: plain numbers and truth values.

Kernels and compiled loops copy them. A tensor would be registered as a parameter and never learnt
there, and they have one value for a whole layer.
"""

from numbers import Real
from typing import Any

import numpy as np


def number(name: str, value: Any) -> float:
    """`value` as a float.

    Raises:
        TypeError: it is not a number; a tensor of one element is none either.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(
            f"{name} is of type {type(value).__name__}; it must be a number, such as 1.0: it holds "
            "for the whole layer and is not learnt"
        )
    return float(value)


def flag(name: str, value: Any) -> bool:
    """`value` as a bool.

    Raises:
        TypeError: it is neither True nor False.
    """
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} is {value!r}; it must be True or False")
    return bool(value)
