"""Resolves requirements.txt against what a Databricks Runtime has installed, and compares.

    python requirements/resolve.py

For each databricks-*.txt beside this file: the resolution must exist with the image's versions as constraints, so that
`pip install -r requirements.txt` adds what is missing and replaces none of them.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PROTECTED = ("torch", "torchvision", "numpy", "pandas", "pyarrow", "ray", "pyspark")
PYTHON = "3.12"


def pins(text: str) -> dict[str, str]:
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", text, flags=re.MULTILINE))


def main() -> int:
    wrong = 0
    for constraints in sorted(HERE.glob("databricks-*.txt")):
        command = [str(Path(sys.executable).with_name("uv")), "pip", "compile", "--quiet", "--no-header"]
        command += ["--no-emit-index-url", "--no-annotate", "--python-version", PYTHON, "-c", str(constraints)]
        done = subprocess.run([*command, str(HERE.parent / "requirements.txt")], capture_output=True, text=True)
        if done.returncode:
            print(f"{constraints.stem}: does not resolve\n{done.stderr}")
            wrong += 1
            continue
        image, resolved = pins(constraints.read_text()), pins(done.stdout)
        replaced = [f"{n} {image[n]} -> {resolved[n]}" for n in image if n in resolved and resolved[n] != image[n]]
        added = sorted(set(resolved) - set(image))
        kept = [name for name in PROTECTED if name in image]
        direct = [name for name in ("lightning", "timm", "mlflow", "torchmetrics") if name in added]
        print(f"{constraints.stem}: resolves; keeps {', '.join(f'{n} {image[n]}' for n in kept)}")
        print(f"  adds {len(added)} packages, among them {', '.join(f'{n} {resolved[n]}' for n in direct)}")
        if replaced:
            print(f"  would replace: {', '.join(replaced)}")
            wrong += 1
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
