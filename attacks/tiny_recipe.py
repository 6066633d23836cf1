"""The start of a recipe that runs in about a second: a few handwritten digits and a network of three linear layers.

>>> print(tiny('[[step]]\\nkind = "prune"\\nbudget = 0.5', limit=50))
<BLANKLINE>
name = "tiny"
[data]
name = "digits"
limit = 50
[model]
name = "lenet-300-100"
[lab]
threads = 1
[[step]]
kind = "prune"
budget = 0.5
"""

from __future__ import annotations

__all__ = ["tiny"]

_START = """
name = "{name}"
[data]
name = "digits"
limit = {limit}
[model]
name = "lenet-300-100"
[lab]
threads = 1
"""


def tiny(steps: str, limit: int = 100, name: str = "tiny") -> str:
    """A recipe's text.

    Args:
        steps: What follows the table [lab]: more lines of it first, if any, then the steps.
        limit: How many images there are.
        name: The recipe's name.
    """
    return _START.format(name=name, limit=limit) + steps.lstrip("\n")
