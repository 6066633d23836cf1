"""`check_attention`: refuse a configuration of the hub that names an attention of the hub, which is code.

transformers takes `owner/name` in place of the name of an attention, fetches that from the hub and runs it, whatever
`trust_remote_code` is.

>>> class Config:
...     _attn_implementation = "someone/kernel"
>>> check_attention(Config(), "folder")
Traceback (most recent call last):
secateur.errors.OptionError: folder: its configuration names the attention 'someone/kernel', which is code of ...
"""

from __future__ import annotations

from collections.abc import Iterator

from secateur.errors import OptionError

__all__ = ["check_attention"]

_DEPTH = 8  # configurations within each other; those of transformers go two or three deep


def check_attention(config: object, where: str) -> None:
    """Raise where a configuration, or one within it, names an attention of the hub.

    Args:
        config: A configuration of transformers.
        where: Whose it is, for the message.

    Raises:
        OptionError: It does.
    """
    for each in _within(config):
        named = getattr(each, "_attn_implementation", None)
        several = named.values() if isinstance(named, dict) else [named]
        found = next((name for name in several if "/" in str(name)), None)
        if found is not None:
            raise OptionError(
                f"{where}: its configuration names the attention {str(found)[:80]!r}, which is code of the hub; "
                "expected eager, sdpa or none: change it in config.json, or build the model in Python"
            )


def _within(config: object, depth: int = _DEPTH) -> Iterator[object]:
    """A configuration and those within it, at every level."""
    yield config
    names = (getattr(config, "sub_configs", None) or ()) if depth else ()
    for name in names:
        inner = getattr(config, name, None)
        if inner is not None:
            yield from _within(inner, depth - 1)
