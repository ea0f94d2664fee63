from .allocation import Allocation
from .choice import Judge, JudgedBy, choose_widths
from .costs import IMAGES, WIDTHS, cost_images, measure_costs
from .drop_search import Trial

__all__ = [
    "IMAGES",
    "WIDTHS",
    "Allocation",
    "Judge",
    "JudgedBy",
    "Trial",
    "choose_widths",
    "cost_images",
    "measure_costs",
]
