"""From masks and groups to a `ShrinkPlan`, and from the plan to a smaller model.

In reading order:

- `choose`: which units the masks drop, rounded to the widths asked for.
- `plan`: `ShrinkPlan`, the cut as plain data; it is stored as JSON and cuts a freshly built model.
- `widths`: attributes of torch's own layers that repeat a width, such as `in_features`.
- `needs_rerun`: whether a forward was given sizes in Python, and must be recorded again to check that it still runs.
- `fit` and `repair`: attributes and calls that hold an old width, found by running the cut model and repaired.
- `trial`: the axes that `fit` would lock, found by cutting half of every group before anything is chosen.
- `rewrite`, `heads`: forwards that run with replaced sizes, old counts (`trace.fixed_count_norms`) or fewer heads.

>>> from torch import nn
>>> from secateur.structure.cut.plan import ShrinkPlan
>>> plan = ShrinkPlan(keep={"weight": {0: (0, 2)}, "bias": {0: (0, 2)}}, attributes={"": {"out_features": 2}})
>>> plan.apply_(nn.Linear(4, 3))
Linear(in_features=4, out_features=2, bias=True)
"""
