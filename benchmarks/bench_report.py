"""How long a report takes: the page, its figures as SVG and PNG, its tables, of 200 and of 2,000 trials.

python benchmarks/bench_report.py [trials ...]
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import time
from pathlib import Path

from secateur.report import Report

sys.path.insert(0, str(Path(__file__).parent))
from _results import Figure, record

LIMITS = {200: 10.0, 2000: 60.0}


def main() -> None:
    path = Path(__file__).parent.parent / "tests" / "report" / "report_samples.py"
    spec = importlib.util.spec_from_file_location("report_samples", path)
    assert spec is not None
    assert spec.loader is not None
    samples = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(samples)
    print("trials  measurements  seconds  limit  page bytes  files")
    for trials in [int(word) for word in sys.argv[1:]] or list(LIMITS):
        run = samples.sweep(trials)
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            written = Report([run]).write(folder)
            seconds = time.perf_counter() - start
            size = written[0].stat().st_size
        limit = LIMITS.get(trials)
        record(
            Figure(f"{trials:,} trials", seconds, "s", limit, tolerance=0.3),
            Figure(f"{trials:,} trials: the page", size, "bytes", tolerance=0.05),
        )
        print(
            f"{trials:6,}  {len(run.measurements):12,}  {seconds:7.1f}  {limit or '-':>5}  {size:10,}  {len(written):5}"
        )
        if limit is not None and seconds > limit:
            sys.exit(f"{trials} trials took {seconds:.1f} s; expected at most {limit:g} s")


if __name__ == "__main__":
    main()
