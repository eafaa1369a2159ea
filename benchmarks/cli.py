"""How long the command line takes to answer, and that it loads nothing heavy to do so."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.compare import Comparison, Options

LIMIT_SECONDS = 0.35
HEAVY = ("torch", "torchvision", "lightning", "mlflow", "timm", "pandas", "numpy", "sklearn", "matplotlib", "PIL")
_PROBE = """
import json, sys
sys.argv = ["cvpipe", "--help"]
try:
    {statement}
except SystemExit:
    pass
print()
print(json.dumps(sorted(name for name in {heavy!r} if name in sys.modules)))
"""


def measure(options: Options, work: Path) -> list[Comparison]:
    runs = 3 if options.quick else 10
    script = Path(sys.executable).with_name("cvpipe")
    help_command = [str(script), "--help"] if script.is_file() else [sys.executable, "-m", "cvpipe.cli", "--help"]
    cases = (
        ("cli/help", "cvpipe --help", help_command, "from cvpipe.cli import main; main()"),
        ("cli/import", "python -c 'import cvpipe'", [sys.executable, "-c", "import cvpipe"], "import cvpipe"),
    )
    found = []
    for name, what, command, statement in cases:
        _seconds(command)
        times = [_seconds(command) for _ in range(runs)]
        heavy = _heavy_modules(statement)
        value = statistics.median(times) if not heavy else float("inf")
        found.append(
            Comparison(
                name=name,
                what=f"{what}, loading none of {', '.join(HEAVY[:4])}, …",
                unit="s",
                ours=tuple(times),
                theirs=(),
                value=value,
                goal=LIMIT_SECONDS,
                at_least=False,
                notes={"heavy_modules": heavy},
            )
        )
    return found


def _seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def _heavy_modules(statement: str) -> list[str]:
    """Which of the heavy packages are loaded once the statement has run."""
    code = _PROBE.format(statement=statement, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    modules: list[str] = json.loads(done.stdout.splitlines()[-1])
    return modules
