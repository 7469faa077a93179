"""A learner as files: portable StableHLO, and a description of its arrays."""
