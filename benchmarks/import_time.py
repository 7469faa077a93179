"""How long does `import etpc` take?

`python -m benchmarks.import_time` runs new processes in turns and prints the CPU time of each, with
`import jax, equinox` first, which is what any model imports. The compiler is loaded when
`etpc.compile` is first asked for. The last column compares the shortest times.
"""

import resource
import statistics
import subprocess
import sys

from rich.console import Console

from benchmarks.table import Column, Table

IMPORTS = {
    "import jax, equinox": "import jax, equinox",
    "import etpc": "import jax, equinox, etpc",
    "and etpc.nn": "import jax, equinox, etpc; etpc.nn",
    "and etpc.compile": "import jax, equinox, etpc; etpc.nn, etpc.compile",
}
TABLE = Table(
    "How long does an import take?",
    [
        Column("name", "import"),
        Column("median_s", "median\ns", ".3f"),
        Column("min_s", "min\ns", ".3f"),
        Column("more_s", "more than\nJAX, s", ".3f"),
    ],
)


def cpu_seconds(code: str) -> float:
    """Of a new process, by the user and by the system."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main(repeats: int = 9) -> None:
    """Print the table."""
    seconds: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for _ in range(repeats):
        for name, code in IMPORTS.items():
            seconds[name].append(cpu_seconds(code))
    shortest = [min(times) for times in seconds.values()]
    rows = [
        {
            "name": name,
            "median_s": statistics.median(times),
            "min_s": min(times),
            "more_s": min(times) - shortest[0],
        }
        for name, times in seconds.items()
    ]
    TABLE.show(Console(), rows, f"CPU time of {repeats} processes each")


if __name__ == "__main__":
    main()
