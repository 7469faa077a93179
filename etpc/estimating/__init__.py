"""What a model costs on a chip that is not there: `chips` has the kinds of chips and their compilers, `compiled` reads
compiled programs, and `estimate` is [`etpc.estimate`][]; `memory` is what a program takes where it runs."""
