"""Distillation: objectives (pure losses), the teacher's cached outputs, and the method that trains a student."""
