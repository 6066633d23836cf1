"""The step `norms` and training with the channels innermost, in recipes on embedded data."""

from __future__ import annotations

import pytest
import torch

from secateur import data
from secateur.container.codebooks import round_to_bits
from secateur.errors import OptionError
from secateur.lab.engine import final_state, run
from secateur.lab.recipe import Recipe
from secateur.lab.store import Store

TRAIN = {"epochs": 1, "lr": 0.05, "batch_size": 64}


def recipe(*steps, model="resnet20"):
    return Recipe.of(
        {
            "data": {"name": "digits", "limit": 300},
            "model": {"name": model},
            "lab": {"threads": 1},
            "step": [{"kind": "train", **TRAIN}, *steps],
        }
    )


def last(ran, store):
    return final_state(ran.plan.trials[0], store).model


def test_statistics_are_plain_averages_over_the_images_that_were_asked_for(tmp_path):
    store = Store(tmp_path)
    plain = last(run(recipe(), store), store)
    ran = run(recipe({"kind": "norms", "images": 100, "batch_size": 50}), store)
    model = last(ran, store)
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter, dict(model.named_parameters())[name]), name

    # By hand, for the first norm: two batches of 50, the averages of their means and unbiased variances.
    images = data.load_for(plain, "digits", limit=300).train
    means, variances = [], []
    for batch, _ in list(images.batches(50, shuffle=True, seed=0))[:2]:
        found = plain.conv1(batch).detach().transpose(0, 1).flatten(1)
        means.append(found.mean(1))
        variances.append(found.var(1))
    torch.testing.assert_close(model.bn1.running_mean, torch.stack(means).mean(0))
    torch.testing.assert_close(model.bn1.running_var, torch.stack(variances).mean(0))
    assert not torch.allclose(plain.bn1.running_mean, model.bn1.running_mean)


def test_codebooks_stay_and_augmentation_and_precision_count(tmp_path):
    store = Store(tmp_path)
    share = {"kind": "share", "bits": 3}
    norms = {"kind": "norms", "images": 60, "batch_size": 30}
    plan = run(recipe(share, norms), store).plan
    state = final_state(plan.trials[0], store)
    assert state.codebooks
    for name, book in state.codebooks.items():
        assert torch.equal(book.tensor(), dict(state.model.named_parameters())[name]), name
    found = [
        last(run(recipe(share, {**norms, **more}), store), store).bn1.running_mean
        for more in ({}, {"augment": "standard"}, {"precision": "bf16"})
    ]
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    torch.testing.assert_close(found[0], found[2], rtol=0.05, atol=0.02)


def test_norms_in_bf16_that_the_processor_emulates_are_said(tmp_path, without_bfloat16):
    norms = {"kind": "norms", "images": 20, "batch_size": 20, "precision": "bf16"}
    with pytest.warns(UserWarning, match="this processor has no instructions for bfloat16"):
        run(recipe(norms), Store(tmp_path))


def test_values_are_rounded_before_statistics_are_taken(tmp_path):
    store = Store(tmp_path)
    share = {"kind": "share", "bits": 3}
    norms = {"kind": "norms", "images": 200, "batch_size": 100}
    pack = {"kind": "pack", "file": "a.sct", "codebook_bits": 4}
    shared = final_state(run(recipe(share), store).plan.trials[0], store)
    plain = last(run(recipe(share, norms), store), store)
    state = final_state(run(recipe(share, {**norms, "codebook_bits": 4}), store).plan.trials[0], store)
    weights = dict(state.model.named_parameters())
    assert state.codebooks.keys() == shared.codebooks.keys()
    for name, book in state.codebooks.items():
        assert torch.equal(book.tensor(), weights[name]), name
        by_hand = round_to_bits(shared.codebooks[name].values.numpy(), 4)
        assert set(book.values.tolist()) <= set(by_hand.tolist()), name
    assert not torch.equal(plain.bn1.running_mean, state.model.bn1.running_mean)

    # The file rounds no further: what was measured is what comes back.
    ran = run(recipe(share, {**norms, "codebook_bits": 4}, pack), store)
    after = last(ran, store)
    for name, value in state.model.state_dict().items():
        assert torch.equal(value, after.state_dict()[name]), name


def test_a_codebook_per_channel_is_not_rounded(tmp_path):
    share = {"kind": "share", "bits": 2, "per": "channel"}
    with pytest.raises(
        OptionError, match=r"conv1.weight: a codebook per channel cannot be rounded; leave codebook_bits out"
    ):
        run(recipe(share, {"kind": "norms", "batch_size": 100, "codebook_bits": 4}), Store(tmp_path))


def test_what_cannot_be_estimated_is_refused_before_any_work(tmp_path):
    with pytest.raises(OptionError, match=r"step 'norms': Lenet300100 has no batch norm"):
        run(recipe({"kind": "norms"}, model="lenet-300-100"), Store(tmp_path))
    with pytest.raises(OptionError, match=r"expected a batch_size of at most 270, .* got 500"):
        run(recipe({"kind": "norms"}), Store(tmp_path))


@pytest.mark.parametrize("kind", ["train", "refine"])
def test_channels_innermost_train_the_same_and_lie_as_before_after_it(tmp_path, kind):
    """Sums in another order differ in the last digits, and no more; what is stored lies as it always did."""
    found = []
    for channels_last in (False, True):
        store = Store(tmp_path / str(channels_last))
        if kind == "train":
            steps = [{"kind": "train", "label": "again", **TRAIN, "lr": 1e-4, "channels_last": channels_last}]
        else:
            steps = [
                {"kind": "share", "bits": 3},
                {"kind": "refine", **TRAIN, "lr": 1e-5, "channels_last": channels_last},
            ]
        model = last(run(recipe(*steps), store), store)
        assert all(tensor.is_contiguous() for tensor in model.state_dict().values())
        found.append(model.state_dict())
    for name, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][name], rtol=1e-3, atol=1e-4, msg=name)


def test_weights_that_are_looked_up_lie_as_the_weights_do():
    import secateur as sc

    torch.manual_seed(0)
    model = sc.models.build("resnet20")
    shared = sc.share(model, bits=3)
    model.to(memory_format=torch.channels_last)
    with shared.train(model) as training:
        weight = model.get_submodule("layer1.0.conv1").weight
        assert weight.is_contiguous(memory_format=torch.channels_last)
        assert not weight.is_contiguous()
        assert all(book.indices.is_contiguous() for book in training.codebooks().values())


def test_same_outputs_changes_scales_and_shifts_with_the_statistics(tmp_path):
    store = Store(tmp_path)
    plain = last(run(recipe(), store), store).eval()
    ran = run(recipe({"kind": "norms", "images": 100, "batch_size": 100, "same_outputs": True}), store)
    model = last(ran, store)
    batch = next(iter(data.load_for(plain, "digits", limit=300).train.batches(100, shuffle=True, seed=0)))[0]
    torch.testing.assert_close(model(batch), plain(batch), rtol=1e-4, atol=1e-4)
    # In training, on the images it was measured on, each norm now gives what it gives in evaluation.
    torch.testing.assert_close(model.train()(batch), plain(batch), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(plain.train()(batch), plain.eval()(batch), rtol=1e-3, atol=1e-3)
