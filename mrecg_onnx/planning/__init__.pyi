from .activations import (
    CLAMPS,
    FLOAT_ONLY,
    FLOAT_RESULT,
    PRESERVING_OPS,
    WEIGHTED_OPS,
    activation_inputs,
    activation_outputs,
    channel_ceilings,
    clamp_bounds,
    constant,
    is_activation,
    is_clamp,
    is_preserving,
    is_weighted,
    lacks_kernel,
    readers,
    weight_index,
)
from .branches import branch_narrow_reads
from .fallback import fallbacks, mark_fallbacks
from .granularity import default_merges, groups_from_mask, select_eq4, select_peaks
from .graph import editable_graph, load_planned, named
from .layers import plan_layers
from .make import make_plan, merge_by
from .placement import place
from .plan import BYSTANDER_BITS, FLOAT_BITS, WIDE_BITS, ActivationPlan, LayerPlan, Plan, UnitPlan
from .schemes import read_scheme
from .settings import BitRule, BitSettings, BudgetSettings, MergeSettings, PlanSettings
from .units import WHOLE_BATCH, join_units, plan_layer_units, plan_units

__all__ = [
    "BYSTANDER_BITS",
    "CLAMPS",
    "FLOAT_BITS",
    "FLOAT_ONLY",
    "FLOAT_RESULT",
    "PRESERVING_OPS",
    "WEIGHTED_OPS",
    "WHOLE_BATCH",
    "WIDE_BITS",
    "ActivationPlan",
    "BitRule",
    "BitSettings",
    "BudgetSettings",
    "LayerPlan",
    "MergeSettings",
    "Plan",
    "PlanSettings",
    "UnitPlan",
    "activation_inputs",
    "activation_outputs",
    "branch_narrow_reads",
    "channel_ceilings",
    "clamp_bounds",
    "constant",
    "default_merges",
    "editable_graph",
    "fallbacks",
    "groups_from_mask",
    "is_activation",
    "is_clamp",
    "is_preserving",
    "is_weighted",
    "join_units",
    "lacks_kernel",
    "load_planned",
    "make_plan",
    "mark_fallbacks",
    "merge_by",
    "named",
    "place",
    "plan_layer_units",
    "plan_layers",
    "plan_units",
    "read_scheme",
    "readers",
    "select_eq4",
    "select_peaks",
    "weight_index",
]
