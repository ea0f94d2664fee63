from .comparison import compare, environment
from .plots import draw_timings, have_matplotlib
from .progress import ComparisonProgress
from .result import Cell, Comparison, Widths
from .tables import minor, table, timed

__all__ = [
    "Cell",
    "Comparison",
    "ComparisonProgress",
    "Widths",
    "compare",
    "draw_timings",
    "environment",
    "have_matplotlib",
    "minor",
    "table",
    "timed",
]
