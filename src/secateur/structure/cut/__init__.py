"""From masks and groups to a `ShrinkPlan`, and from the plan to a smaller model.

In reading order:

- `choose`: which units the masks drop, rounded to the widths asked for.
- `plan`: `ShrinkPlan`, the cut as plain data; it is stored as JSON and cuts a freshly built model.
- `runs`, `attributes`, `kept_widths`: its indices, what it may set, and its short form in files.
- `widths`, `restated`: attributes that repeat a width, such as `in_features`: of torch's own layers, of others.
- `needs_rerun`: whether a forward was given sizes in Python, and must be recorded again to check that it still runs.
- `fit` and `repair`: attributes and calls that hold an old width, found by running the cut model and repaired.
- `branches`: calls that only a larger input or training reaches, found by recording it, and repaired by their place.
- `known_rewrites`, `fewer_heads`: what a plan gets without a trial: old counts, call sites, torch's attention layers.
- `trial`: the axes that `fit` would lock, found by cutting half of every group before anything is chosen.
- `rewrite_data`: `Rewrite`, other sizes for one call as plain data. `rewrite`, `call_sites`, `edited_calls`, `heads`:
  forwards that run with these sizes, with old counts (`trace.fixed_count_norms`) or with fewer heads.

>>> from torch import nn
>>> from secateur.structure.cut.plan import ShrinkPlan
>>> plan = ShrinkPlan(keep={"weight": {0: (0, 2)}, "bias": {0: (0, 2)}}, attributes={"": {"out_features": 2}})
>>> plan.apply_(nn.Linear(4, 3))
Linear(in_features=4, out_features=2, bias=True)
"""
