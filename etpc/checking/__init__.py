"""Gradients judged: compared with exact ones, faults found, and learning rules suggested by what is measured."""
