from .inspection import Inspection, Measured, TensorInfo, inspect
from .ranking import Quality, Ranking, rank

__all__ = ["Inspection", "Measured", "Quality", "Ranking", "TensorInfo", "inspect", "rank"]
