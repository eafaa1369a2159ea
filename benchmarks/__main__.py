"""`python -m benchmarks [NAME]...`: measures, prints ratios, writes results/latest.json."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import batch, cli, data_check, loader, loader_inside, loader_peers, train
from benchmarks.compare import ROOT, Comparison, Options, machine

BENCHMARKS: dict[str, Callable[[Options, Path], list[Comparison]]] = {
    "cli": cli.measure,
    "loader": loader.measure,
    "overhead": loader_inside.measure_overhead,
    "memory": loader_inside.measure_memory,
    "peers": loader_peers.measure,
    "batch": batch.measure,
    "data_check": data_check.measure,
    "train": train.measure,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 1 where a goal was missed; with --quick the figures are shown only."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="cvpipe against its plain counterparts.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which ones: {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="short runs: do they work? The figures mean little.")
    parser.add_argument("--rounds", type=int, default=5, help="alternations; the median of their ratios counts")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or auto, for both sides (default: cpu)")
    parser.add_argument(
        "--images",
        type=Path,
        default=ROOT.parent / "shared" / "data" / "clothing",
        help="ImageFolder root with train/ of JPEG photos; where it is missing, crops of scikit-learn's sample photos",
    )
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "latest.json")
    args = parser.parse_args(argv)
    if unknown := [name for name in args.names if name not in BENCHMARKS]:
        parser.error(f"unknown: {', '.join(unknown)}. Known: {', '.join(BENCHMARKS)}.")
    options = Options(
        quick=args.quick, rounds=1 if args.quick else args.rounds, device=args.device, images=args.images.resolve()
    )
    facts = machine(options.device)
    found: list[Comparison] = []
    with tempfile.TemporaryDirectory(prefix="cvpipe-bench-") as work:
        for name in args.names or BENCHMARKS:
            print(f"{name} …", file=sys.stderr, flush=True)
            found += BENCHMARKS[name](options, Path(work))
            _write(args.output, options, facts, found)
    print(f"{facts['cpus']} CPUs, {facts['device']}, load average {facts['load_average']:.1f} at the start")
    for comparison in found:
        print(_line(comparison))
    print(f"figures of each run: {args.output}")
    return 1 if not options.quick and not all(comparison.reached for comparison in found) else 0


def _line(comparison: Comparison) -> str:
    low, high = comparison.spread
    if comparison.theirs:
        mark = "x"
        ours, theirs = statistics.median(comparison.ours), statistics.median(comparison.theirs)
        sides = f"{ours:.4g} against {theirs:.4g} {comparison.unit}"
    else:
        mark, sides = f" {comparison.unit}", f"{len(comparison.ours)} runs"
    bound = "at least" if comparison.at_least else "at most"
    verdict = "" if comparison.goal is None else f"  goal {bound} {comparison.goal:g}{mark}: "
    verdict += "" if comparison.goal is None else ("reached" if comparison.reached else "MISSED")
    return (
        f"{comparison.name:<24} {comparison.value:6.3f}{mark} ({low:.3f} to {high:.3f}; {sides}){verdict}\n"
        f"{'':<24} {comparison.what}"
    )


def _write(path: Path, options: Options, facts: dict[str, object], found: Sequence[Comparison]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "quick": options.quick,
        "machine": facts,
        "comparisons": [comparison.to_dict() for comparison in found],
    }
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
