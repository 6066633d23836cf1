"""Accuracy without retraining (draft)."""
