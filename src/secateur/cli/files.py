"""Verbs on files of weights: `pack`, `unpack`, `inspect`."""

VERBS = ()
