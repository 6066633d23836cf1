"""Whether honest files are read as fast as by an earlier commit: `python benchmarks/bench_reading.py --before FOLDER`.

FOLDER is a checkout of the earlier commit (`git worktree add FOLDER COMMIT`). Both read the same files, written by
the earlier one: a `.sct` file alone and into a model, masks, a shrunk model, a `.safetensors` file (packed and
unpacked), a plan, a scan, a Parquet folder of 400 images. They take turns, each reading in a process of its own;
processor time counts, the fastest of its readings. Goal: at most 1.05 of the earlier commit's time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from _results import Figure, record

HERE = Path(__file__).resolve().parents[1]

_WRITE = """
import io, sys, pyarrow, pyarrow.parquet, torch, secateur as sc
from pathlib import Path
from PIL import Image
folder = Path(sys.argv[1]); torch.manual_seed(0)
model = sc.models.build("resnet20", num_classes=10).eval()
example = torch.randn(1, 3, 32, 32)
torch.save(model.state_dict(), folder / "m.pt")
from safetensors.torch import save_file
save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "m.safetensors")
masks = sc.prune(model, "l2", "channel", 0.5, example=example)
masks.save(folder / "masks.safetensors")
shrunk = sc.shrink(model, masks, example)
sc.save(shrunk.model, folder / "s.sct", plan=shrunk.plan)
(folder / "plan.json").write_text(shrunk.plan.to_json())
sc.save(sc.share(shrunk.model, 6).model, folder / "m.sct", plan=shrunk.plan)
rows = []
for k in range(400):
    file = io.BytesIO()
    Image.effect_noise((32, 32), 40 + k % 9).convert("RGB").save(file, "PNG")
    rows.append({"bytes": file.getvalue(), "path": None})
table = pyarrow.table({"img": rows, "label": [k % 10 for k in range(400)]})
(folder / "data").mkdir()
for part in ("train", "test"):
    pyarrow.parquet.write_table(table, folder / "data" / f"{part}.parquet")
"""

_READ = """
import json, sys, tempfile, time, torch, secateur as sc
from pathlib import Path
folder = Path(sys.argv[1]); torch.set_num_threads(1)
from secateur.container.pack import pack, unpack
try:  # where a commit has it
    from secateur.structure.cut.plan import ShrinkPlan
except ImportError:
    from secateur.structure.plan import Plan as ShrinkPlan
plan = (folder / "plan.json").read_text()
build = lambda: sc.models.build("resnet20", num_classes=10)
def packed():
    with tempfile.TemporaryDirectory() as t:
        pack(folder / "m.safetensors", Path(t) / "a.sct"); unpack(Path(t) / "a.sct", Path(t) / "b.safetensors")
def from_pt():
    with tempfile.TemporaryDirectory() as t:
        pack(folder / "m.pt", Path(t) / "a.sct")
def images():
    with tempfile.TemporaryDirectory() as t:
        sc.data.load(folder / "data", cache_dir=t)
ways = {
    "a .sct file": lambda: sc.load(folder / "m.sct"),
    "a .sct file into a model": lambda: sc.load(folder / "m.sct", into=build()),
    "masks": lambda: sc.Masks.load(folder / "masks.safetensors"),
    "a .safetensors file, packed and unpacked": packed,
    "a .pt file, packed": from_pt,
    "a plan": lambda: ShrinkPlan.from_json(plan),
    "a Parquet folder of images": images,
}
out = {}
for name, way in ways.items():
    way(); times = []
    end = time.monotonic() + 3
    while len(times) < 5 or (time.monotonic() < end and len(times) < 200):
        began = time.process_time(); way(); times.append(time.process_time() - began)
    out[name] = min(times)
print(json.dumps(out))
"""


def run(code: str, source: Path, folder: Path) -> str:
    """Run a program on the package of one checkout; gives what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(source / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, required=True, help="a checkout of the earlier commit")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(_WRITE, options.before.resolve(), folder)
        rounds = [
            (json.loads(run(_READ, options.before.resolve(), folder)), json.loads(run(_READ, HERE, folder)))
            for _ in range(options.rounds)
        ]
    print(f"{'':<44} {'before':>10} {'now':>10} {'ratio':>7} {'goal':>6}")
    for what in rounds[0][0]:
        before, now = (statistics.median(each[k][what] for each in rounds) for k in (0, 1))
        ratio = statistics.median(each[1][what] / each[0][what] for each in rounds)
        print(f"{what:<44} {before * 1e3:>7.2f} ms {now * 1e3:>7.2f} ms {ratio:>7.3f} {1.05:>6}")
        record(Figure(f"{what}, now over before", ratio, "ratio", 1.05))


if __name__ == "__main__":
    main()
