from .gathering import report, report_comparison, report_quantization, report_ranking, report_validation
from .writing import require_packages

__all__ = [
    "report",
    "report_comparison",
    "report_quantization",
    "report_ranking",
    "report_validation",
    "require_packages",
]
