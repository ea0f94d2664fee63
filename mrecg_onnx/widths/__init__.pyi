from .allocation import Allocation, Budget, allocate, average_budget, budgets_of, with_rules
from .choice import Chosen, Judge, choose_widths
from .costs import IMAGES, WIDTHS, Costs, cost_images, measure_costs
from .drop_search import AVERAGES, Trial, measured_drop, search, tell_doubts
from .packed_size import PackedSize

__all__ = [
    "AVERAGES",
    "IMAGES",
    "WIDTHS",
    "Allocation",
    "Budget",
    "Chosen",
    "Costs",
    "Judge",
    "PackedSize",
    "Trial",
    "allocate",
    "average_budget",
    "budgets_of",
    "choose_widths",
    "cost_images",
    "measure_costs",
    "measured_drop",
    "search",
    "tell_doubts",
    "with_rules",
]
