"""One run of one engine: `python -m benchmarks.engine loader.cvpipe '{"batches": 10}'` prints its figures as JSON."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from typing import Any


def main(engine: str, settings: str) -> None:
    module, _, function = engine.partition(".")
    call: Any = getattr(importlib.import_module(f"benchmarks.{module}"), function)
    with contextlib.redirect_stdout(sys.stderr):
        figures: dict[str, float] = call(**json.loads(settings))
    print(json.dumps(figures))


if __name__ == "__main__":
    main(*sys.argv[1:])
