"""The count, the bounds and the selection of Effective Model Pruning, on arrays of any library.

>>> import emp_core
>>> emp_core.keep_count([3.0, -1.0, 1.0, 1.0])
3
"""

from . import criteria
from ._bound import lower_witness, mass_lower_bound, mass_upper_bound, upper_witness
from ._cut import Cut, select_stream
from ._effective import effective_size, keep_count
from ._errors import ArgumentError, EmpError, MissingExtraError, PoolError, VerifyError
from ._hill import hill_number
from ._many import select_each
from ._mask import retained_mass, top_mask
from ._moments import Moments
from ._row_cuts import RowCuts, select_rows
from ._schedule import beta_schedule, cubic_schedule
from ._scope import Blocks, Columns, Groups, Labels, Model, Rows, Scope, Whole
from ._select import Selection, select

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "Blocks",
    "Columns",
    "Cut",
    "EmpError",
    "Groups",
    "Labels",
    "MissingExtraError",
    "Model",
    "Moments",
    "PoolError",
    "RowCuts",
    "Rows",
    "Scope",
    "Selection",
    "VerifyError",
    "Whole",
    "beta_schedule",
    "criteria",
    "cubic_schedule",
    "effective_size",
    "hill_number",
    "keep_count",
    "lower_witness",
    "mass_lower_bound",
    "mass_upper_bound",
    "retained_mass",
    "select",
    "select_each",
    "select_rows",
    "select_stream",
    "top_mask",
    "upper_witness",
]
