from .allocation import Allocation, Budget, allocate, average_budget, budgets_of, with_rules
from .costs import IMAGES, WIDTHS, Costs, cost_images, measure_costs
from .drop_search import AVERAGES, Trial, measured_drop, search, tell_doubts
from .packed_size import PackedSize

__all__ = [
    "AVERAGES",
    "IMAGES",
    "WIDTHS",
    "Allocation",
    "Budget",
    "Costs",
    "PackedSize",
    "Trial",
    "allocate",
    "average_budget",
    "budgets_of",
    "cost_images",
    "measure_costs",
    "measured_drop",
    "search",
    "tell_doubts",
    "with_rules",
]
