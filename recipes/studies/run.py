"""Run the studies of docs/studies, each with one command.

python recipes/studies/run.py heatmaps --data ../shared/data   # a folder with fashion_mnist/ and tinyshakespeare/
python recipes/studies/run.py                                  # all of them; without --data the files are downloaded
python recipes/studies/run.py --smoke                          # all of them at toy size, on scikit-learn's digits

Rerun the same command to resume a study that was killed: finished runs are skipped.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import runpy
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TextIO

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread a run: with more they wait for each other

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "recipes"))

# schedules reads the results of heatmaps
STUDIES = (
    *("styles", "heatmaps", "schedules", "budgets", "restarts", "lost_decay", "masks", "muon_against_adamw"),
    *("forgetting", "hyperball", "transfer", "width"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the named studies, one sweep after the other, and write their tables and pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", metavar="STUDY", help=f"{', '.join(STUDIES)}; default: all")
    parser.add_argument("--data", type=Path, default=Path("~/.cache/lightning-wd"), help="folder of the data sets")
    parser.add_argument("--work", type=Path, help="folder of the runs; default: multirun/studies")
    parser.add_argument("--out", type=Path, help="folder of the results; default: docs/studies")
    parser.add_argument("--smoke", action="store_true", help="toy size, into multirun/studies-smoke")
    parser.add_argument("--report-only", action="store_true", help="use the runs there are, start none")
    parser.add_argument("--draw-only", action="store_true", help="draw the pictures again, from the tables in --out")
    options = parser.parse_args(argv)
    unknown = [name for name in options.studies if name not in STUDIES]
    if unknown:
        parser.error(f"study {unknown[0]!r} is unknown; choose from {', '.join(STUDIES)}")
    # a new folder each time, so that toy runs test the present code
    runs = f"studies-smoke/{time.strftime('%Y-%m-%d_%H-%M-%S')}" if options.smoke else "studies"
    work = (options.work or ROOT / "multirun" / runs).resolve()
    out = (options.out or (work / "docs" if options.smoke else ROOT / "docs/studies")).resolve()
    data = options.data.expanduser().resolve()
    output = Output(sys.stdout)
    for name in options.studies or STUDIES:
        started = time.time()
        (out / name).mkdir(parents=True, exist_ok=True)
        (work / name).mkdir(parents=True, exist_ok=True)
        output.open(work / name / "log.txt")
        with contextlib.redirect_stderr(output):  # Lightning's logger keeps the stream of its import
            study = import_module(f"studies.{name}")
        sweeps = {} if options.report_only or options.draw_only else study.sweeps(data, out / name, options.smoke)
        for number, (sweep, overrides) in enumerate(sweeps.items(), start=1):
            print(f"study {name}: sweep {number} of {len(sweeps)}, {sweep}", flush=True)
            if callable(overrides):  # they depend on the runs of an earlier sweep
                overrides = overrides(work / name)
            try:
                run_sweep([*overrides, f"hydra.sweep.dir={work / name / sweep}"], output)
            except SystemExit as stop:
                print(
                    f"study {name} stopped, see {work / name}/log.txt; rerun the same command to resume",
                    file=sys.stderr,
                )
                return int(stop.code or 1)
            if refused(work / name / sweep):
                return 1
        if not options.draw_only:
            if refused(work / name):
                return 1
            study.report(work / name, out / name)
        study.draw(out / name)
        print(f"study {name}: {out / name} written after {(time.time() - started) / 60:.1f} min", flush=True)
    return 0


def refused(folder: Path) -> bool:
    """Whether finished cells of other sweeps lie in a sweep's folder: reports read all that they find."""
    from lightning_wd.runs.sweep import leftovers  # not before the environment is set

    for note in sorted(folder.glob("**/sweep.jsonl")):
        if others := leftovers(note.parent):
            names = ", ".join(str(cell.relative_to(note.parent)) for cell in others)
            print(f"{note.parent} has finished cells that its last sweep did not go over: {names}", file=sys.stderr)
            print("fix: delete them, or choose another folder with --work", file=sys.stderr)
            return True
    return False


def run_sweep(overrides: Sequence[str], output: Output) -> None:
    """Run one sweep of recipes/train.py in this process: its imports take longer than many runs.

    Args:
        overrides: the sweep's command line.
        output: receives what it prints.

    Raises:
        SystemExit: the sweep failed, with Hydra's exit status.
    """
    before = sys.argv
    try:
        sys.argv = ["train.py", *overrides]
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            runpy.run_path(str(ROOT / "recipes/train.py"), run_name="__main__")
    finally:
        sys.argv = before


class Output(io.TextIOBase):
    """Write everything to the log of the current study, and progress to the terminal too.

    Args:
        terminal: where the lines of progress go.
    """

    def __init__(self, terminal: TextIO) -> None:
        self.terminal, self.line = terminal, ""
        self.log: TextIO | None = None

    def open(self, path: Path) -> None:
        """Write to another log from now on."""
        if self.log is not None:
            self.log.close()
        self.log = path.open("a", encoding="utf-8")

    def write(self, text: str) -> int:
        if self.log is not None:
            self.log.write(text)
        *whole, self.line = (self.line + text).split("\n")
        for line in whole:
            if line.startswith("sweep:"):
                print(f"  {line}", file=self.terminal, flush=True)
        return len(text)

    def flush(self) -> None:
        if self.log is not None:
            self.log.flush()


if __name__ == "__main__":
    sys.exit(main())
