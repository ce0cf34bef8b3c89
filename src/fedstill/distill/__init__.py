"""Distillation: a canvas pulled by a matcher."""
