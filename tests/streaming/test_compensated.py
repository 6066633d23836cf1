"""A model larger than memory, pruned block by block: the numbers of the same in memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.container.ended_jobs import ended_by_ctrl_c
from tests.streaming.tiny_llama import OUTSIDE, batches, llama, state_of, transformers

import secateur as sc
from secateur.budget import BudgetLike
from secateur.core.json_text import Json
from secateur.errors import DataError, NothingToDoError, OptionError, StoreError
from secateur.streaming.blocks import blocks_of, meta_model
from secateur.streaming.compensated import BlockOptions, compensate_checkpoint


@pytest.mark.parametrize(
    ("criterion", "dtype", "padded"),
    [
        ("wanda", torch.float32, False),
        ("wanda", torch.float32, True),
        ("wanda", torch.bfloat16, False),
        ("obs", torch.float32, False),
        ("magnitude", torch.float32, False),
    ],
)
def test_block_by_block_is_as_in_memory(
    criterion: str, dtype: torch.dtype, padded: bool, tmp_path: Path
) -> None:
    model = llama(tmp_path / "in", dtype)
    data = batches(padded)
    masks = sc.prune(model, criterion, budget=0.5, skip=OUTSIDE, data=data)
    wanted = sc.compensate(model, masks, data, skip="lm_head")
    done = compensate_checkpoint(tmp_path / "in", tmp_path / "out", data, criterion)
    found, state = state_of(tmp_path / "out"), wanted.model.state_dict()
    assert set(found) == set(state_of(tmp_path / "in"))
    for name, value in found.items():
        assert torch.equal(value, state[name]), name
    rows = {layer.name: layer for layer in wanted.layers}
    assert {row["name"] for row in done.rows} == set(rows)
    for row in done.rows:
        assert (row["before"], row["after"]) == (rows[row["name"]].before, rows[row["name"]].after)
    assert transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out").config.num_hidden_layers == 3


def test_a_tied_head_stays_tied_and_no_file_has_it(tmp_path: Path) -> None:
    """In the model of config.json, and in one that was moved to the meta device, which tears the two apart."""
    model, data = llama(tmp_path / "in", tied=True), batches()
    masks = sc.prune(model, "wanda", budget=0.5, skip=OUTSIDE, data=data)
    wanted = sc.compensate(model, masks, data, skip="lm_head").model.state_dict()
    moved = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "in").eval()
    rotary = {name: buffer.clone() for name, buffer in moved.named_buffers()}
    moved.to("meta")
    for name, buffer in rotary.items():
        owner, _, leaf = name.rpartition(".")
        moved.get_submodule(owner).register_buffer(leaf, buffer, persistent=False)
    assert moved.lm_head.weight is not moved.model.embed_tokens.weight
    for number, given in enumerate((None, moved)):
        out = tmp_path / f"out-{number}"
        compensate_checkpoint(tmp_path / "in", out, data, options=BlockOptions(model=given), skip="lm_head")
        found = state_of(out)
        assert set(found) == set(wanted) - {"lm_head.weight"} == set(state_of(tmp_path / "in"))
        for name, value in found.items():
            assert torch.equal(value, wanted[name]), name
        again = transformers.LlamaForCausalLM.from_pretrained(out)
        assert again.lm_head.weight is again.model.embed_tokens.weight


def test_pruning_alone_and_other_choices(tmp_path: Path) -> None:
    model, data = llama(tmp_path / "in"), batches()
    skip = [*OUTSIDE, "*.down_proj"]
    masks = sc.prune(model, "wanda", budget=sc.budget.NOfM(2, 4), skip=skip, data=data)
    done = compensate_checkpoint(
        tmp_path / "in",
        tmp_path / "out",
        data,
        "wanda",
        sc.budget.NOfM(2, 4),
        skip=["*.down_proj"],
        options=BlockOptions(compensate=False),
    )
    wanted = masks.apply(model).state_dict()
    for name, value in state_of(tmp_path / "out").items():
        assert torch.equal(value, wanted[name]), name
    assert len(done.rows) == 3 * 6


@pytest.mark.parametrize("damage", ["", "cut", "gone", "other"])
def test_an_interrupted_run_goes_on_with_the_next_block(damage: str, tmp_path: Path) -> None:
    """Where its file of inputs is damaged, the error says so, and the call after it begins again."""
    llama(tmp_path / "in")
    whole = compensate_checkpoint(tmp_path / "in", tmp_path / "whole", batches())
    with ended_by_ctrl_c(2):
        compensate_checkpoint(tmp_path / "in", tmp_path / "out", batches())
    assert not (tmp_path / "out").exists()
    kept = next(tmp_path.glob(".secateur*/hidden-2.safetensors"))
    if damage == "cut":
        kept.write_bytes(kept.read_bytes()[:-1])
    elif damage == "gone":
        kept.unlink()
    elif damage == "other":
        save_file({f"{name}.{at}": torch.zeros(1) for name in ("dense", "student") for at in range(9)}, kept)
    if damage:
        with pytest.raises(StoreError, match=r"cannot be used .* and is deleted; run the same command again"):
            compensate_checkpoint(tmp_path / "in", tmp_path / "out", batches())
    seen: list[int] = []
    done = compensate_checkpoint(
        tmp_path / "in", tmp_path / "out", batches(), progress=lambda index, count: seen.append(index)
    )
    assert seen == ([1, 2, 3] if damage else [3])
    assert done.rows == whole.rows
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name
    assert not list(tmp_path.glob(".secateur*"))


@pytest.mark.parametrize(
    "change",
    [
        {"attn_implementation": "owner/kernel"},
        {"hidden_size": "much"},
        {"model_type": []},
        {"vocab_size": None},
    ],
)
def test_a_configuration_runs_no_code_and_is_refused_by_name(change: dict[str, Json], tmp_path: Path) -> None:
    llama(tmp_path / "in")
    path = tmp_path / "in" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(OptionError) as caught:
        meta_model(tmp_path / "in")
    code = "is code of the hub" in str(caught.value)
    assert code == ("attn_implementation" in change)
    assert ("makes no model of its config" in str(caught.value)) != code


def test_the_blocks_are_found_and_have_no_weights(tmp_path: Path) -> None:
    llama(tmp_path / "in")
    model = meta_model(tmp_path / "in")
    assert blocks_of(model) == "model.layers"
    assert all(parameter.is_meta for parameter in model.parameters())


def test_what_cannot_be_done_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    llama(tmp_path / "in")
    data = batches()
    out = tmp_path / "out"
    with pytest.raises(OptionError, match="pack it afterwards"):
        compensate_checkpoint(tmp_path / "in", tmp_path / "m.sct", data)
    with pytest.raises(OptionError, match="compares units of several tensors"):
        compensate_checkpoint(tmp_path / "in", out, data, budget=sc.budget.Overall(0.5))
    with pytest.raises(OptionError, match=r"granularity Channel.* follows the forward"):
        compensate_checkpoint(tmp_path / "in", out, data, options=BlockOptions(granularity="channel"))
    with pytest.raises(OptionError, match=r"expected the name of an nn.ModuleList, got 'model'"):
        compensate_checkpoint(tmp_path / "in", out, data, options=BlockOptions(blocks="model"))
    with pytest.raises(NothingToDoError, match=r"of the blocks 'model.layers' takes part"):
        compensate_checkpoint(tmp_path / "in", out, data, options=BlockOptions(only="lm_head"))
    with pytest.raises(DataError, match="data"):
        compensate_checkpoint(tmp_path / "in", out, [])
    (tmp_path / "in" / "config.json").unlink()
    with pytest.raises(OptionError, match=r"has no config.json .* sc.BlockOptions\(model=model\)"):
        compensate_checkpoint(tmp_path / "in", out, data)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("budget", [0.5, sc.budget.Overall(0.5), sc.budget.ErdosRenyi(0.5)])
@pytest.mark.parametrize("both", [False, True])
def test_tensor_by_tensor_a_tied_weight_takes_part_under_the_names_it_has_in_the_files(
    both: bool, budget: BudgetLike, tmp_path: Path
) -> None:
    """Where all tensors compete it counts once, although it is in the files twice."""
    model = llama(tmp_path / "in", tied=True)
    if both:  # as older files have it
        folder = tmp_path / "in"
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        index["weight_map"]["lm_head.weight"] = "head.safetensors"
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        save_file({"lm_head.weight": model.lm_head.weight.detach().clone()}, folder / "head.safetensors")
    options = sc.StreamOptions(model=meta_model(tmp_path / "in"))
    sc.prune_checkpoint(tmp_path / "in", tmp_path / "out", budget=budget, options=options)
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out")
    assert again.lm_head.weight is again.model.embed_tokens.weight
    wanted = sc.prune(model, budget=budget).apply(model).state_dict()
    for name, value in again.state_dict().items():
        assert torch.equal(value, wanted[name]), name
