"""Many devices and many streams: a learner over a mesh, and carries that are cut, joined and moved."""
