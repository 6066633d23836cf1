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

from secateur.errors import OptionError

__all__ = ["check_attention"]


def check_attention(config: object, where: str) -> None:
    """Raise where a configuration, or one within it, names an attention of the hub.

    Args:
        config: A configuration of transformers.
        where: Whose it is, for the message.

    Raises:
        OptionError: It does.
    """
    inner = [getattr(config, name, None) for name in getattr(config, "sub_configs", None) or ()]
    for each in (config, *inner):
        named = getattr(each, "_attn_implementation", None)
        several = named.values() if isinstance(named, dict) else [named]
        found = next((name for name in several if "/" in str(name)), None)
        if found is not None:
            raise OptionError(
                f"{where}: its configuration names the attention {str(found)[:80]!r}, which is code of the hub; "
                "expected eager, sdpa or none: change it in config.json, or build the model in Python"
            )
