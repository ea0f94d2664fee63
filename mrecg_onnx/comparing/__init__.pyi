from .comparison import Cell, Comparison, ComparisonProgress, compare
from .plots import draw_timings, have_matplotlib
from .tables import table

__all__ = ["Cell", "Comparison", "ComparisonProgress", "compare", "draw_timings", "have_matplotlib", "table"]
