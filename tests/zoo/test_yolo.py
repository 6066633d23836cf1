"""Models of ultralytics: cut, proved, saved, loaded by `YOLO(...)`, trained by its own trainer, exported."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import secateur as sc
from secateur.core.nested import tensors_in
from secateur.errors import FormatError, OptionError, PlanError, UnknownNameError

sys.path.insert(0, str(Path(__file__).resolve().parent))

import yolo

pytestmark = pytest.mark.zoo
IMAGE = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
QUIET = {
    "imgsz": 64, "batch": 4, "workers": 0, "device": "cpu", "plots": False, "verbose": False, "mosaic": 0.0,
    "warmup_epochs": 0.0, "optimizer": "SGD", "lr0": 0.01, "seed": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def ultralytics(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    yolo.prepare(tmp_path_factory.mktemp("settings"))
    return pytest.importorskip("ultralytics", exc_type=ImportError)


def cut(name: str) -> tuple[torch.nn.Module, sc.Shrunk]:
    """A variant and what half of its channels make of it."""
    model = yolo.build(name)
    return model, sc.shrink(model, sc.prune(model, "l2", "channel", 0.5, example=IMAGE), IMAGE)


def outputs(model: torch.nn.Module) -> list[torch.Tensor]:
    """The tensors that a model gives for the image, in the order in which they are found."""
    with torch.no_grad():
        return list(tensors_in(model.eval()(IMAGE)))


def shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", yolo.VARIANTS)
def test_the_whole_chain(name: str, ultralytics: ModuleType, tmp_path: Path) -> None:
    # Cut and proved.
    model, small = cut(name)
    assert small.proof.holds
    assert small.proof.error < 1e-9
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, small.model))
    assert after < 0.45 * before
    # Saved, and loaded by YOLO(...): the same outputs to the bit.
    path = sc.save_yolo(small, tmp_path / "small.pt")
    loaded = ultralytics.YOLO(path)
    assert loaded.task == yolo.task_of(name)
    for mine, theirs in zip(outputs(small.model), outputs(loaded.model), strict=True):
        assert torch.equal(mine, theirs)
    # Trained by ultralytics' own trainer: the widths stay, the weights move.
    data = yolo.data_set(tmp_path / "data", loaded.task)
    loaded.train(
        trainer=sc.yolo_trainer(loaded.task),
        data=str(data),
        epochs=1,
        project=str(tmp_path),
        name="run",
        **QUIET,
    )
    best = ultralytics.YOLO(tmp_path / "run" / "weights" / "best.pt")
    assert shapes(best.model) == shapes(small.model)
    states = [m.state_dict() for m in (best.model, small.model)]
    moved = [
        n
        for n, p in small.model.named_parameters()
        if not torch.equal(states[0][n], states[1][n].half().float())
    ]
    assert len(moved) > 0.5 * len(list(small.model.parameters()))
    # Exported, and run in ONNX Runtime.
    onnxruntime = pytest.importorskip("onnxruntime")
    file = best.export(format="onnx", imgsz=64, simplify=False, device="cpu", verbose=False)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (found, *_) = session.run(None, {session.get_inputs()[0].name: IMAGE.numpy()})
    expected = outputs(ultralytics.YOLO(best.ckpt_path).model)[0]
    assert found.shape == tuple(expected.shape)
    if "26" not in name and "v10" not in name:  # these choose among equal scores
        assert (torch.from_numpy(found) - expected).abs().max() < 1e-3 * expected.abs().max()
    # Timed beside the dense model's file (`benchmarks/bench_yolo.py` says how much faster it is).
    whole = ultralytics.YOLO(sc.save_yolo(model, tmp_path / "dense.pt"))
    dense = whole.export(format="onnx", imgsz=64, simplify=False, device="cpu", verbose=False)
    files = [sc.OnnxModel(each, threads=1) for each in (dense, file)]
    times = sc.compare(*files, IMAGE, repetitions=3, threads=1, names=("dense", "small"))
    assert [each.context.get("variant") for each in times] == ["dense", "small", None]
    assert all(each.value > 0 for each in times)
    assert Path(file).stat().st_size < 0.5 * Path(dense).stat().st_size


def train(path: Path, folder: Path, **options: object):
    """One training of a file's model; gives its YOLO object."""
    from ultralytics import YOLO

    loaded = YOLO(path)
    data = yolo.data_set(folder / "data", loaded.task)
    given = {"data": str(data), "epochs": 1, "project": str(folder), "name": "run", **QUIET, **options}
    loaded.train(**given)
    return loaded


def test_without_the_trainer_the_cut_is_undone(ultralytics: ModuleType, tmp_path: Path) -> None:
    model, small = cut("yolov8n")
    sc.save_yolo(small, tmp_path / "small.pt")
    trained = train(tmp_path / "small.pt", tmp_path)
    # What the guide warns of; when this fails, the guide is out of date.
    assert shapes(trained.model)["model.0.conv.weight"] == shapes(model)["model.0.conv.weight"]


def test_a_file_loads_in_a_process_without_secateur(ultralytics: ModuleType, tmp_path: Path) -> None:
    _, small = cut("yolov8n")
    path = sc.save_yolo(small, tmp_path / "small.pt")
    torch.save(IMAGE, tmp_path / "image.pt")
    code = (
        f"import sys; sys.modules['secateur'] = None; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        f"import yolo, pathlib, torch; yolo.prepare(pathlib.Path({str(tmp_path)!r}))\n"
        f"from ultralytics import YOLO; model = YOLO({str(path)!r}).model.eval()\n"
        f"with torch.no_grad(): torch.save(model(torch.load({str(tmp_path / 'image.pt')!r}))[0], "
        f"{str(tmp_path / 'out.pt')!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert torch.equal(torch.load(tmp_path / "out.pt"), outputs(small.model)[0])
    # ultralytics' own restricted loader, which takes known classes only, reads it as well
    tasks = ultralytics.nn.tasks
    assert tasks.torch_safe_load(path, safe_only=True)[0]["secateur"]["plan"] == small.plan.to_json()


def test_masks_are_held_and_survive_resume(ultralytics: ModuleType, tmp_path: Path) -> None:
    _, small = cut("yolov8n")
    masks = sc.prune(small.model, "magnitude", "element", 0.6)
    path = sc.save_yolo(small, tmp_path / "small.pt", masks=masks)
    trainer = sc.yolo_trainer()
    seen: list[int] = []

    class Stopped(Exception):
        pass

    def watch(running) -> None:
        copies = (running.model, running.ema.ema)
        assert all((m.get_parameter(name)[~mask] == 0).all() for m in copies for name, mask in masks.items())
        seen.append(running.epoch)

    def stop(running) -> None:
        raise Stopped

    first = ultralytics.YOLO(path)
    first.add_callback("on_train_batch_end", watch)
    first.add_callback("on_model_save", stop)
    data = yolo.data_set(tmp_path / "data", "detect")
    options = {"data": str(data), "epochs": 2, "project": str(tmp_path), "name": "run", **QUIET}
    with pytest.raises(Stopped):
        first.train(trainer=trainer, **options)
    last = ultralytics.YOLO(tmp_path / "run" / "weights" / "last.pt")
    last.add_callback("on_train_batch_end", watch)
    last.train(trainer=trainer, resume=True)
    assert seen == [0, 1]
    assert shapes(last.model) == shapes(small.model)
    dense = small.model.state_dict()
    for name, mask in masks.items():
        assert (last.model.get_parameter(name)[~mask] == 0).all()
    assert not torch.equal(last.model.state_dict()["model.0.conv.weight"], dense["model.0.conv.weight"])


def test_half_rounds_and_no_more(ultralytics: ModuleType, tmp_path: Path) -> None:
    _, small = cut("yolov8n")
    whole, half = (sc.save_yolo(small, tmp_path / f"{half}.pt", half=half) for half in (False, True))
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    read = ultralytics.YOLO(half).model.state_dict()
    for name, tensor in small.model.state_dict().items():
        assert torch.equal(read[name], tensor.half().float() if tensor.is_floating_point() else tensor)


def test_what_cannot_be_trained_is_refused(ultralytics: ModuleType, tmp_path: Path) -> None:
    _, small = cut("yolov8n")
    path = sc.save_yolo(small, tmp_path / "small.pt")
    trainer = sc.yolo_trainer()
    with pytest.raises(OptionError, match=r"no checkpoint was loaded.*without pretrained=False"):
        train(path, tmp_path, trainer=trainer, pretrained=False)
    other = sc.save_yolo(yolo.build("yolov8n", classes=5), tmp_path / "five.pt")
    with pytest.raises(OptionError, match="the model has 5 classes, the data 2"):
        train(other, tmp_path, trainer=trainer)
    fused = ultralytics.YOLO(path)
    fused.model.fuse()
    data = yolo.data_set(tmp_path / "data", "detect")
    with pytest.raises(OptionError, match="was fused by predict"):
        fused.train(trainer=trainer, data=str(data), epochs=1, project=str(tmp_path), **QUIET)
    with pytest.raises(OptionError, match=r"unknown task 'detection'.*'detect'"):
        sc.yolo_trainer("detection")
    with pytest.raises(OptionError, match=r"expected a task such as 'detect'.*got DetectionModel"):
        sc.yolo_trainer(small.model)


def test_what_cannot_be_loaded_is_not_written(ultralytics: ModuleType, tmp_path: Path) -> None:
    model = yolo.build("yolov8n")
    with pytest.raises(OptionError, match=r"files that end in .pt; name the file small.pt"):
        sc.save_yolo(model, tmp_path / "small.pth")
    with pytest.raises(OptionError, match="expected a model of ultralytics, got Linear"):
        sc.save_yolo(torch.nn.Linear(2, 2), tmp_path / "small.pt")
    model.model[0].note = sc.Masks({"w": torch.ones(1, dtype=torch.bool)})
    with pytest.raises(PlanError, match=r"would need secateur.core.masks.Masks to load"):
        sc.save_yolo(model, tmp_path / "small.pt")
    model = yolo.build("yolo11n")
    small = sc.shrink(model, sc.prune(model, "l2", "channel", BUDGETS["yolo11n"], example=IMAGE), IMAGE)
    with pytest.raises(
        PlanError, match=r"the forward of 'model.10.m.0.attn' \(Attention\).*what shrink returned"
    ):
        sc.save_yolo(small.model, tmp_path / "small.pt")
    assert list(tmp_path.iterdir()) == []


BUDGETS = {
    "yolo11n": sc.budget.Macs(keep=0.5),
    "yolov8n": sc.budget.Macs(keep=0.5, round_to=8),
    "yolo11n-seg": sc.budget.Macs(keep=0.5),
    "yolo11n-pose": sc.budget.Macs(keep=0.5),
    "yolo26n": sc.budget.Macs(keep=0.5),
    "yolo26n-seg": sc.budget.Macs(keep=0.5),
    "yolo26n-pose": sc.budget.Macs(keep=0.5),
}


@pytest.mark.parametrize("name", BUDGETS)
def test_where_a_forward_was_rewritten_the_file_is_wider_and_computes_the_same(
    name: str, ultralytics: ModuleType, tmp_path: Path
) -> None:
    model = yolo.build(name)
    # The attention of 11 has another width than its input; the halves of v8's C2f keep unlike numbers of channels.
    small = sc.shrink(model, sc.prune(model, "l2", "channel", BUDGETS[name], example=IMAGE), IMAGE)
    assert small.plan.rewrites
    assert ((1, 3, 96, 96),) in {case.shapes for case in small.proof.cases}
    for size in ((96, 64), (32, 128)):
        small.model(torch.rand(1, 3, *size))
    masks = sc.prune(small.model, "magnitude", "element", 0.3)
    masks.apply_(small.model)
    file = sc.save_yolo(small, tmp_path / "small.pt", masks=masks)
    loaded = ultralytics.YOLO(file).model
    numbers = [sum(p.numel() for p in each.parameters()) for each in (small.model, loaded, model)]
    assert numbers[0] < numbers[1] < 0.85 * numbers[2]
    for mine, theirs in zip(outputs(small.model), outputs(loaded), strict=True):
        assert (mine - theirs).abs().max() <= 1e-4 * mine.abs().max()
    zeros = sum(int((p == 0).sum()) for p in loaded.parameters())
    assert zeros >= sum(int((~mask).sum()) for mask in masks.values())
    # Trained by ultralytics: the widths stay, and every zero, also of the channels that were put back.
    trained = train(file, tmp_path, trainer=sc.yolo_trainer(yolo.task_of(name)))
    best = ultralytics.YOLO(trained.trainer.best).model
    assert shapes(best) == shapes(loaded)
    gone = {key: tensor == 0 for key, tensor in loaded.named_parameters() if key in masks}
    assert all((best.get_parameter(key)[where] == 0).all() for key, where in gone.items())
    assert not torch.equal(best.model[0].conv.weight.float(), loaded.model[0].conv.weight)


def test_weights_that_were_half_are_written_as_half(ultralytics: ModuleType, tmp_path: Path) -> None:
    model = yolo.build("yolov8n").half().float()
    small = sc.shrink(model, sc.prune(model, "l2", "channel", 0.5, example=IMAGE), IMAGE)
    exact, whole = (sc.save_yolo(small, tmp_path / f"{half}.pt", half=half) for half in (None, False))
    assert exact.stat().st_size < 0.6 * whole.stat().st_size
    for mine, theirs in zip(outputs(small.model), outputs(ultralytics.YOLO(exact).model), strict=True):
        assert torch.equal(mine, theirs)


def test_a_forward_before_the_cut_changes_nothing(ultralytics: ModuleType) -> None:
    shapes_of_cases = []
    for forwards in (0, 1):
        model = yolo.build("yolov8n")
        for _ in range(forwards):
            outputs(model)
        small = sc.shrink(model, sc.prune(model, "l2", "channel", 0.5, example=IMAGE), IMAGE)
        shapes_of_cases.append({case.shapes for case in small.proof.cases})
    assert shapes_of_cases[0] == shapes_of_cases[1]
    assert len(shapes_of_cases[0]) == 4


def test_from_a_checkpoint_to_a_checkpoint_on_the_command_line(
    ultralytics: ModuleType, tmp_path: Path, monkeypatch, capsys
) -> None:
    from secateur import cli

    monkeypatch.chdir(tmp_path)
    sc.save_yolo(yolo.build("yolov8n"), "best.pt")

    def secateur(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["secateur", *words])
        code = 0
        try:
            cli.main()
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        return code, *capsys.readouterr()

    words = ("--budget", "0.5", "--input", "1,3,64,64", "--repetitions", "1", "--out")
    code, out, err = secateur("shrink", "ultralytics/best.pt", *words, "small.pt")
    assert code == 0, err
    assert 'YOLO("small.pt")' in out
    assert "random" not in err
    before, after = (
        sum(p.numel() for p in ultralytics.YOLO(f).model.parameters()) for f in ("best.pt", "small.pt")
    )
    assert after < 0.45 * before
    code, _, err = secateur("shrink", "best.pt", *words, "small.pt")
    assert code == 2
    assert "a checkpoint of ultralytics is written ultralytics/best.pt" in " ".join(err.split())
    code, _, err = secateur("shrink", "resnet20", *words, "small.pt")
    assert code == 2
    assert "a .pt file is written of a model of ultralytics" in " ".join(err.split())
    code, _, err = secateur("shrink", "ultralytics/best.pt", "best.pt", *words, "small.pt")
    assert code == 2
    assert "a checkpoint of ultralytics, which has its own; leave the second file out" in " ".join(
        err.split()
    )


def test_the_recipe(ultralytics: ModuleType, tmp_path: Path) -> None:
    from secateur.lab.engine import final_state, run
    from secateur.lab.recipe import Recipe
    from secateur.lab.store import Store

    data = yolo.data_set(tmp_path / "data", "detect", images=6)
    settings = [
        f"data.path={tmp_path / 'data'}", "data.size=64", "model.options={num_classes = 2}",
        f"train_yolo.data={data}", "train_yolo.epochs=1", "train_yolo.imgsz=64", "train_yolo.batch=4",
        'dense.what=["params", "macs"]', 'small.what=["params", "macs", "latency"]', "lab.device=cpu",
    ]  # fmt: skip
    recipe = Recipe.read(Path(__file__).parents[2] / "recipes" / "yolo.toml", settings)
    store = Store(tmp_path / "runs")
    found = run(recipe, store)
    rows = {(m.context["variant"], m.name): m.value for m in found.measurements}
    assert rows["small", "macs"] < 0.7 * rows["dense", "macs"]
    assert 0 <= rows["train_yolo", "map_boxes"] <= rows["train_yolo", "map50_boxes"] <= 1
    assert rows["export", "export_error"] < 1e-4
    state = final_state(found.plan.trials[0], store)
    (tmp_path / "result.pt").write_bytes(state.files["yolo.pt"])
    loaded = ultralytics.YOLO(tmp_path / "result.pt").model
    for mine, theirs in zip(outputs(state.model), outputs(loaded), strict=True):
        assert torch.equal(mine, theirs)
    # A checkpoint as the model of a recipe is read without running code of the file.
    model = sc.models.build(f"ultralytics/{tmp_path / 'result.pt'}")
    assert shapes(model) == shapes(loaded)


def test_the_page_prints_the_recipe() -> None:
    root = Path(__file__).parents[2]
    recipe, page = (root / name for name in ("recipes/yolo.toml", "docs/guide/yolo.md"))
    assert f"```toml\n# file: yolo.toml\n{recipe.read_text()}```" in page.read_text()


class Marked:
    """What leaves a mark when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.marker), "w")


def test_a_cache_beside_the_labels_is_a_pickle_and_not_read(ultralytics: ModuleType, tmp_path: Path) -> None:
    from ultralytics.data import dataset

    from secateur.adapters.ultralytics_training import train_yolo

    data, marker = yolo.data_set(tmp_path / "data", "detect", images=4), tmp_path / "it ran"
    cache = tmp_path / "data" / "labels.cache"
    assert (tmp_path / "data" / "labels").is_dir()
    cache.write_bytes(pickle.dumps(Marked(marker)))
    found = dataset.load_dataset_cache_file
    train_yolo(yolo.build("yolov8n"), data, epochs=1, **{key: QUIET[key] for key in QUIET if key != "lr0"})
    assert not marker.exists()
    assert dataset.load_dataset_cache_file is found


def test_what_is_no_model_of_ultralytics(ultralytics: ModuleType, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("nc: 2\nbackbone: []\nhead: []\n")
    for name in ("yolov99n", "mine", "../yolov8n", "gone.pt"):
        with pytest.raises(UnknownNameError, match=r"no model|no such file"):
            sc.models.build(f"ultralytics/{name}")
    with pytest.raises(OptionError, match="has no option 'in_channels'; it has num_classes"):
        sc.models.build("ultralytics/yolov8n", in_channels=1)
    torch.save({"model": Path("code")}, "evil.pt")
    with pytest.raises(FormatError, match=r"does not read it without running code|expected a model in it"):
        sc.models.build("ultralytics/evil.pt")
    assert sc.models.build("ultralytics/yolo11n-pose", num_classes=2).model[-1].nc == 2
