"""Tasks that need memory, learnt with the same network, data and updates by several rules."""
