"""Loops of training around an online learner."""
