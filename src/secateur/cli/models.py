"""Verbs on a model: `measure`."""

VERBS = ()
