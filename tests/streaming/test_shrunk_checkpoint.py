"""Channels and heads cut out of a model larger than memory: the weights of the same in memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.container.ended_jobs import ended_by_ctrl_c
from tests.streaming.tiny_llama import OUTSIDE, batches, llama, state_of, transformers

import secateur as sc
from secateur.adapters import _fresh
from secateur.errors import NothingToDoError, OptionError
from secateur.streaming.compensated import BlockOptions
from secateur.streaming.shrunk import shrink_checkpoint


@pytest.mark.parametrize(
    ("criterion", "granularity", "compensate", "dtype", "tied"),
    [
        ("l2", "channel", False, torch.float32, False),
        ("l2", "channel", True, torch.float32, True),
        ("wanda", "channel", True, torch.bfloat16, False),
        ("l1", "head", False, torch.float32, True),
    ],
)
def test_block_by_block_is_as_in_memory(
    criterion: str, granularity: str, compensate: bool, dtype: torch.dtype, tied: bool, tmp_path: Path
) -> None:
    model, data = llama(tmp_path / "in", dtype, tied=tied), batches()
    masks = sc.prune(model, criterion, granularity, 0.5, skip=OUTSIDE, example=data[0], data=data)
    pruned = sc.compensate(model, masks, data, skip="lm_head").model if compensate else masks.apply(model)
    wanted = sc.shrink(pruned, masks, data[0])
    options = BlockOptions(granularity=granularity, compensate=compensate)
    done = shrink_checkpoint(tmp_path / "in", tmp_path / "out", data, criterion, options=options)

    found, state = state_of(tmp_path / "out"), wanted.model.state_dict()
    assert set(found) == set(state) - ({"lm_head.weight"} if tied else set())
    for name, value in found.items():
        assert torch.equal(value, state[name]), name
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == tied
    with torch.no_grad():
        assert torch.equal(again(**data[0]).logits, wanted.model.eval()(**data[0]).logits)
    assert again.config.intermediate_size == wanted.model.config.intermediate_size
    assert again.config.num_attention_heads == wanted.model.config.num_attention_heads == 2

    assert [row["name"] for row in done.rows] == [f"model.layers.{number}" for number in range(3)]
    assert all(float(str(row["proof"])) < 1e-9 and float(str(row["error"])) > 0 for row in done.rows)
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in wanted.model.model.layers]
    assert [row["kept"] for row in done.rows] == sizes
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in found.values())
    assert index["metadata"]["total_parameters"] == sum(value.numel() for value in found.values())
    assert done.size < done.source


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    llama(tmp_path / "in")
    whole = shrink_checkpoint(tmp_path / "in", tmp_path / "whole", batches())
    with ended_by_ctrl_c(2):
        shrink_checkpoint(tmp_path / "in", tmp_path / "out", batches())
    seen: list[int] = []
    done = shrink_checkpoint(
        tmp_path / "in", tmp_path / "out", batches(), progress=lambda index, count: seen.append(index)
    )
    assert seen == [3]
    assert done.rows == whole.rows
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name
    assert not list(tmp_path.glob(".secateur*"))


def test_what_cannot_be_done_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    llama(tmp_path / "in")
    data, out = batches(), tmp_path / "out"
    with pytest.raises(OptionError, match="pack it afterwards"):
        shrink_checkpoint(tmp_path / "in", tmp_path / "m.sct", data)
    with pytest.raises(OptionError, match=r"granularity Element.* sc.compensate_checkpoint writes its zeros"):
        shrink_checkpoint(tmp_path / "in", out, data, options=BlockOptions(granularity="element"))
    with pytest.raises(OptionError, match="may give blocks different widths"):
        shrink_checkpoint(tmp_path / "in", out, data, budget=sc.budget.Overall(0.5))
    with pytest.raises(NothingToDoError, match="removes nothing"):
        shrink_checkpoint(tmp_path / "in", out, data, budget=0.0)
    with pytest.raises(OptionError, match="has no configuration to write the new widths into"):
        shrink_checkpoint(tmp_path / "in", out, data, options=BlockOptions(model=torch.nn.Linear(2, 2)))
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_widths_that_no_configuration_says_are_refused_after_the_first_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llama(tmp_path / "in")
    monkeypatch.setattr("secateur.streaming.shrunk.fitted_config", lambda *_: (None, "no field says it"))
    seen: list[int] = []
    with pytest.raises(OptionError, match="the blocks can be cut, but no field says it; load the model"):
        shrink_checkpoint(
            tmp_path / "in", tmp_path / "out", batches(), progress=lambda index, count: seen.append(index)
        )
    assert not seen
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.ray
def test_blocks_on_ray_are_as_on_one_machine(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="RAY IS NOT INSTALLED: blocks on Ray are not tested here")
    llama(tmp_path / "in")
    hook = {"worker_process_setup_hook": _fresh._declare_torchvision}  # for transformers, as in this process
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=hook)
    try:
        for name, verb in {"cut": shrink_checkpoint, "solved": sc.compensate_checkpoint}.items():
            here, there = tmp_path / f"{name}-here", tmp_path / f"{name}-there"
            one = verb(tmp_path / "in", here, batches(), options=BlockOptions(inputs="dense"))
            options = BlockOptions(inputs="dense", cluster=sc.BlockCluster(at_a_time=2))
            other = verb(tmp_path / "in", there, batches(), options=options)
            assert one.rows == other.rows
            for path in here.iterdir():
                assert path.read_bytes() == (there / path.name).read_bytes(), path.name
    finally:
        ray.shutdown()


def test_blocks_on_dense_inputs_depend_on_none_before(tmp_path: Path) -> None:
    """The first block is as ever; the second is solved on other inputs."""
    llama(tmp_path / "in")
    sc.compensate_checkpoint(tmp_path / "in", tmp_path / "pruned", batches())
    sc.compensate_checkpoint(
        tmp_path / "in", tmp_path / "dense", batches(), options=BlockOptions(inputs="dense")
    )
    pruned, dense = state_of(tmp_path / "pruned"), state_of(tmp_path / "dense")
    same = [
        torch.equal(
            pruned[f"model.layers.{n}.mlp.up_proj.weight"], dense[f"model.layers.{n}.mlp.up_proj.weight"]
        )
        for n in range(2)
    ]
    assert same == [True, False]
    with pytest.raises(OptionError, match="pass inputs='dense' as well"):
        BlockOptions(cluster=sc.BlockCluster())
    with pytest.raises(OptionError, match="expected 'pruned' or 'dense', got 'sparse'"):
        BlockOptions(inputs="sparse")
    with pytest.raises(OptionError, match="expected cpus above 0"):
        sc.BlockCluster(cpus=0)
