"""Hostile files for every reader, faults in the middle of a run, and random models for the verbs."""
