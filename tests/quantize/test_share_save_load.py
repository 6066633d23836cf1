"""Share, save, load: the loaded model computes, bit for bit, what the shared one does."""

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.core.masks import Masks


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(),
        nn.Linear(256, 10),
    )  # fmt: skip
    model(torch.randn(8, 3, 8, 8))  # running statistics that are not those of a fresh model
    return model.eval()


def pruned(model: nn.Module) -> Masks:
    weights = {name: p.detach().abs() for name, p in model.named_parameters() if p.dim() > 1}
    return Masks({name: weight > weight.flatten().quantile(0.64) for name, weight in weights.items()})


OPTIONS = [
    {"bits": 5},
    {"bits": 1, "start": "linear"},
    {"bits": 8, "start": "kmeans++"},
    {"bits": 3, "per": "model"},
    {"bits": 2, "per": "channel"},
    {"method": "uniform", "bits": 5, "rate": 0.1},
    {"method": "uniform", "step": 0.013},
]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_loaded_model_gives_the_same_bits(tmp_path, options, masked):
    model = net()
    masks = pruned(model) if masked else None
    shared = sc.share(model, masks=masks, **options)
    saved = sc.save(shared.model, tmp_path / "m.sct", shared, masks=masks)
    loaded = sc.load(tmp_path / "m.sct", into=net(seed=1)).eval()
    inputs = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded(inputs), shared.model(inputs))
    for name, value in shared.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert saved.size == (tmp_path / "m.sct").stat().st_size < saved.dense


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(tmp_path, dtype):
    model = net().to(dtype)
    shared = sc.share(model, bits=4)
    sc.save(shared.model, tmp_path / "m.sct", shared)
    state = sc.load(tmp_path / "m.sct")
    assert all(torch.equal(state[name], value) for name, value in shared.model.state_dict().items())


def test_trained_codebooks_are_saved_as_they_ended(tmp_path):
    shared = sc.share(net(), bits=3, masks=pruned(net()))
    with shared.train() as training:
        optimizer = torch.optim.Adam(shared.model.parameters(), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            shared.model(torch.randn(8, 3, 8, 8)).square().mean().backward()
            optimizer.step()
    result = shared.trained(training)
    sc.save(result.model, tmp_path / "m.sct", result, masks=dict(result.masks))
    again = sc.share(sc.load(tmp_path / "m.sct", into=net(seed=1)), method="exact")
    for name, book in result.codebooks.items():
        assert torch.equal(again.codebooks[name].tensor(), book.tensor())


def test_the_file_grows_with_the_bits_and_stays_above_the_formula(tmp_path):
    model = net()
    masks = pruned(model)
    sizes = []
    for bits in (2, 4, 6):
        shared = sc.share(model, bits=bits, masks=masks)
        saved = sc.save(shared.model, tmp_path / f"{bits}.sct", shared, masks=masks)
        sizes.append(saved.size)
        assert saved.ratio < shared.formula_ratio, "positions, codebooks and batch norm cost bytes too"
    assert sizes == sorted(sizes)
