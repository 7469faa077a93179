"""Process replay: the programs of 30 networks under 6 rules, as they were when `programs.txt` was last written.

A change of the compiler that is meant to change nothing shows no difference, and one that is meant to shows it in the
diff of that file: `python -m tests.replay` writes it anew.
"""
