"""The same networks in braintrace and in etpc, and what their gradients have to do with each other."""
