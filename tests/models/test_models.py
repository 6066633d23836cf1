"""The studies' networks, to the parameter, and models by other names."""

from __future__ import annotations

import importlib
import sys
import types

import pytest
import torch
from torch import nn

from secateur import models
from secateur.errors import MissingExtraError, OptionError, UnknownNameError

PARAMETERS = {
    "vae": 652_824,
    "cnn": 300_426,
    "fc": 119_910,
    "vgg16-lottery": 14_719_818,
    "vgg12": 8_391_882,
    "resnet20": 269_722,
    "resnet56": 853_018,
    "resnet18": 11_181_642,
    "resnet101": 42_520_650,
    "lenet-300-100": 266_610,
    "lenet5": 431_080,
    "wide-cnn": 1_972_792,
}


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_every_model_is_counted_here():
    assert set(models.names()) == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_shapes_and_gradients(name):
    torch.manual_seed(0)
    model = models.build(name)
    assert count(model) == PARAMETERS[name]
    shape = models.input_shape(model)
    images = torch.rand(2, *shape)
    outputs = model(images)
    if name == "vae":
        model.training_loss(outputs, images).backward()
    else:
        assert outputs.shape == (2, 10)
        nn.functional.cross_entropy(outputs, torch.tensor([1, 2])).backward()
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", [name for name in PARAMETERS if name not in ("vae", "resnet101")])
def test_classes_and_channels(name):
    model = models.build(name, num_classes=7, in_channels=2).eval()
    shape = models.input_shape(model)
    assert shape[0] == 2
    assert model(torch.zeros(1, *shape)).shape == (1, 7)


def test_the_same_seed_makes_the_same_weights():
    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat([p.detach().flatten() for p in models.build("resnet20").parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_whitened_patches_are_uncorrelated_and_of_equal_spread():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(50, 3, 32, 32, generator=generator).cumsum(-1)  # neighbours alike, as in pictures
    model = models.build("wide-cnn")
    before = model.white.weight.clone()
    model.whiten(images)
    assert not torch.equal(model.white.weight, before)
    with torch.no_grad():
        answers = model.white(images).transpose(0, 1).reshape(24, -1).double()
    assert torch.equal(answers[12:], -answers[:12])
    covariance = answers[:12] @ answers[:12].T / answers.shape[1]
    # 5e-4 is added to every spread before it is divided by; these spreads are far above it.
    torch.testing.assert_close(covariance, torch.eye(12, dtype=torch.float64), atol=0.02, rtol=0)


def test_blocks_of_the_wide_network_start_by_handing_on():
    weight = models.build("wide-cnn").block2.conv2.weight
    assert torch.equal(weight[:, :, 1, 1], torch.eye(256))


def test_widths_that_cannot_hand_on_are_refused():
    with pytest.raises(
        OptionError, match=r"expected three that do not fall, from 24 on .* got \(64, 32, 32\)"
    ):
        models.build("wide-cnn", widths=(64, 32, 32))


def test_multiply_accumulates_of_the_lottery_vgg():
    """313,478,154: one for each use of a weight, and one for each bias added, as the study counts them."""
    counted = 0

    def hook(module, inputs, output):
        nonlocal counted
        counted += output.numel() * (module.weight[0].numel() + 1)

    model = models.build("vgg16-lottery").eval()
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(hook)
    model(torch.zeros(1, 3, 32, 32))
    assert counted == 313_478_154


def test_the_names_of_resnet20_are_those_of_the_published_weights():
    names = set(models.build("resnet20").state_dict())
    assert {"conv1.weight", "bn1.running_mean", "linear.weight", "linear.bias"} <= names
    assert {"layer1.0.conv1.weight", "layer3.2.bn2.num_batches_tracked"} <= names
    assert not any("shortcut" in name or "downsample" in name for name in names)
    state = models.build("resnet20").state_dict()
    assert sum(tensor.numel() * tensor.element_size() for tensor in state.values()) == 1_084_544


def test_the_shortcut_of_resnet20_has_half_its_new_channels_on_each_side():
    block = models.build("resnet20").layer2[0].eval()
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    images = torch.rand(1, 16, 4, 4)
    out = block(images)
    assert torch.equal(out[:, 8:24], images[:, :, ::2, ::2])
    assert out[:, :8].abs().max() == out[:, 24:].abs().max() == 0


def test_the_vae_is_a_function_in_evaluation_and_samples_in_training():
    torch.manual_seed(0)
    model = models.build("vae")
    images = torch.rand(3, 1, 28, 28)
    assert not torch.equal(model(images)[0], model(images)[0])
    model.eval()
    assert torch.equal(model(images), model(images))
    mu, log_variance = model.encode(images)
    outputs = model(images), mu, log_variance
    error, divergence = model.terms(outputs, images)
    reference = nn.functional.binary_cross_entropy(outputs[0], images.flatten(1), reduction="sum")
    torch.testing.assert_close(error, reference)
    standard = torch.distributions.Normal(torch.zeros_like(mu), torch.ones_like(mu))
    ours = torch.distributions.Normal(mu, (0.5 * log_variance).exp())
    torch.testing.assert_close(divergence, torch.distributions.kl_divergence(ours, standard).sum())


def test_pixels_of_exactly_0_and_1_give_the_vae_a_gradient_that_is_a_number():
    reconstruction = torch.tensor([[0.0, 1.0, 0.0, 1.0, 0.25]], requires_grad=True)
    images = torch.tensor([[0.0, 0.0, 1.0, 1.0, 0.5]])
    code = torch.zeros(1, 2)
    error, _ = models.registry.get("vae").terms((reconstruction, code, code), images)
    error.backward()
    reference = nn.functional.binary_cross_entropy(reconstruction.detach(), images, reduction="sum")
    torch.testing.assert_close(error.detach(), reference)
    assert reconstruction.grad.isfinite().all()
    torch.testing.assert_close(reconstruction.grad[0, 4], torch.tensor(-0.5 / 0.25 + 0.5 / 0.75))


def test_hyphens_and_underscores_are_the_same():
    assert type(models.build("vgg16_lottery")) is type(models.build("VGG16-lottery"))
    assert models.registry.get("lenet_300_100").__name__ == "Lenet300100"


def test_wrong_names_and_options_are_answered_with_the_near_ones():
    with pytest.raises(UnknownNameError, match=r"unknown model 'resnet2O': did you mean 'resnet20'.*timm"):
        models.build("resnet2O")
    with pytest.raises(
        UnknownNameError, match=r"unknown model 'bert'.*folder with its config\.json, .* ultralytics/FILE\.pt"
    ):
        models.build("bert")
    with pytest.raises(
        OptionError, match="model 'cnn' has no option 'num_class': did you mean 'num_classes'"
    ):
        models.build("cnn", num_class=3)


def make(width: int = 3, **options):
    return nn.Linear(width, 2)


not_a_model = 7


def test_a_function_in_the_folder_at_hand(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    before = list(sys.path)
    with pytest.raises(
        UnknownNameError, match="no module 'in_this_folder' on the import path or in this folder"
    ):
        models.build("in_this_folder:net")
    assert sys.path == before
    (tmp_path / "beside_it.py").write_text("import torch\nnet = torch.nn.Identity\n")
    (tmp_path / "in_this_folder.py").write_text(
        "def net():\n    import beside_it\n    return beside_it.net()\n"
    )
    importlib.invalidate_caches()
    try:
        assert isinstance(models.build("in_this_folder:net"), torch.nn.Identity)
        (tmp_path / "lacking.py").write_text("import no_such_thing_at_all\n")
        with pytest.raises(UnknownNameError, match="no module 'no_such_thing_at_all'"):
            models.build("lacking:net")
    finally:
        for name in ("in_this_folder", "beside_it"):
            sys.modules.pop(name, None)


def test_a_function_of_ones_own(monkeypatch):
    here = types.ModuleType("my_models")
    here.make, here.number, here.wrong = make, not_a_model, lambda: 3
    monkeypatch.setitem(sys.modules, "my_models", here)
    assert models.build("my_models:make", width=5).in_features == 5
    with pytest.raises(UnknownNameError, match="module my_models has no 'mak'; did you mean 'make'"):
        models.build("my_models:mak")
    with pytest.raises(UnknownNameError, match="no module 'my_modelz' on the import path"):
        models.build("my_modelz:make")
    with pytest.raises(UnknownNameError, match=r"did you mean my_modelz\.nets:make\? expected package"):
        models.build("my_modelz/nets.py:make")
    with pytest.raises(OptionError, match="expected a function or class that makes a model, got int"):
        models.build("my_models:number")
    with pytest.raises(OptionError, match=r"expected a torch\.nn\.Module, got int"):
        models.build("my_models:wrong")
    with pytest.raises(OptionError, match=r"the options .*depth.* do not fit it"):
        models.build("secateur.models.fc:Fc", depth=3)


@pytest.mark.parametrize(
    ("library", "module"), [("timm", "timm"), ("torchvision", "torchvision"), ("hf", "transformers")]
)
def test_a_missing_library_is_named_with_the_extra_that_brings_it(monkeypatch, library, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        MissingExtraError, match=rf"needs the library {module}.*pip install 'secateur\[{module}\]'"
    ):
        models.build(f"{library}/resnet18")


def test_a_library_that_is_there_but_broken_says_what_to_mend(monkeypatch, tmp_path):
    (tmp_path / "timm.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    words = (
        r"installed but cannot be imported \(operator torchvision::nms .*; next: install the torchvision that"
    )
    with pytest.raises(MissingExtraError, match=words):
        models.build("timm/nosuch")


SMALL = {"num_classes": 3, "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}


@pytest.mark.zoo
def test_an_architecture_of_transformers(torchvision):
    pytest.importorskip("transformers")
    options = {
        "num_classes": 3,
        "in_channels": 1,
        "embedding_size": 8,
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
    }
    model = models.build("hf/resnet", **options).eval()
    assert model(torch.zeros(1, 1, 32, 32)).logits.shape == (1, 3)
    with pytest.raises(OptionError, match="is an architecture, which has no weights of its own"):
        models.build("hf/resnet", pretrained=True)


@pytest.mark.zoo
def test_a_checkpoint_of_transformers_in_a_folder(torchvision, tmp_path):
    pytest.importorskip("transformers")
    model = models.build("hf/resnet", **SMALL)
    model.save_pretrained(tmp_path / "saved")
    same = models.build(f"hf/{tmp_path / 'saved'}")
    state = same.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    fresh = models.build(f"hf/{tmp_path / 'saved'}", pretrained=False)
    assert not torch.equal(next(fresh.parameters()), next(model.parameters()))


@pytest.mark.zoo
@pytest.mark.parametrize("name", ["resnet18", "resnet101"])
def test_ours_has_torchvisions_layout_and_names(torchvision, name):
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name, weights=None).state_dict()
        ours = models.build(name, num_classes=1000).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: v.shape for key, v in theirs.items()}
    assert list(ours) == list(theirs)


@pytest.mark.zoo
def test_ours_computes_what_torchvisions_does(torchvision):
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(num_classes=10).eval()
    ours = models.build("resnet18").eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=0)


@pytest.mark.zoo
def test_models_of_torchvision_and_timm_by_name(torchvision):
    assert models.build("torchvision/squeezenet1_1", num_classes=4).num_classes == 4
    with pytest.raises(UnknownNameError, match="torchvision has no model 'squeezenet'"):
        models.build("torchvision/squeezenet")
    with pytest.raises(OptionError, match="take 3 input channels"):
        models.build("torchvision/resnet18", in_channels=1)
    pytest.importorskip("timm")
    model = models.build("timm/test_resnet.r160_in1k", num_classes=4, in_channels=1).eval()
    assert model(torch.zeros(1, 1, 64, 64)).shape == (1, 4)
    assert models.input_shape(model) is not None
    with pytest.raises(UnknownNameError, match="timm has no model 'resnet18x': did"):
        models.build("timm/resnet18x")
