"""The loss of a sequence, its gradient by backpropagation through time, and how near another gradient is."""
