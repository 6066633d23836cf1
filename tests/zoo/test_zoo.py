"""The part of the zoo that fits a test run: half of every group leaves, the proof holds, the work really shrinks.

The whole of it is `python benchmarks/zoo.py`, which writes docs/zoo.md.
"""

from __future__ import annotations

import copy
import importlib.util
import pickle
import sys
from pathlib import Path

import pytest
import torch

import secateur as sc
from secateur.structure.cutting import cut
from secateur.structure.groups.couplings import analyse

sys.path.insert(0, str(Path(__file__).resolve().parent))

import hf

import models

pytestmark = pytest.mark.zoo

# library, name, edge of the image, least share of the MACs that must go
PICKED = [
    ("torchvision", "resnet18", 64, 0.7),
    ("torchvision", "resnext50_32x4d", 64, 0.7),
    ("torchvision", "densenet121", 64, 0.7),
    ("torchvision", "googlenet", 64, 0.7),
    ("torchvision", "mobilenet_v3_small", 64, 0.6),
    ("torchvision", "efficientnet_b0", 64, 0.7),
    ("torchvision", "shufflenet_v2_x0_5", 64, 0.5),
    ("torchvision", "squeezenet1_1", 64, 0.6),
    ("torchvision", "convnext_tiny", 64, 0.4),
    ("torchvision", "swin_t", 64, 0.4),
    ("torchvision", "vit_b_32", 224, 0.4),
    ("torchvision", "lraspp_mobilenet_v3_large", 64, 0.6),
    ("torchvision", "r3d_18", 56, 0.7),
    ("timm", "vit_tiny_patch16_224", 224, 0.4),
    ("timm", "levit_128s", 224, 0.6),
    ("timm", "res2net50_26w_4s", 64, 0.7),
    ("timm", "mixnet_s", 64, 0.6),
    ("timm", "coat_lite_tiny", 224, 0.4),
    ("timm", "repvit_m1", 64, 0.6),
    ("timm", "efficientvit_b0", 64, 0.6),
    ("timm", "gmlp_s16_224", 224, 0.45),
    ("timm", "pvt_v2_b0", 64, 0.4),
]


def needs(library: str) -> None:
    name = "transformers" if library == "hf" else library
    if importlib.util.find_spec(name) is None:
        pytest.skip(
            f"the zoo needs {name}, which is not installed: pip install {name} (see benchmarks/zoo-requirements.txt)"
        )


@pytest.mark.parametrize(("library", "name", "size", "least"), PICKED, ids=[f"{p[0]}-{p[1]}" for p in PICKED])
def test_images(library: str, name: str, size: int, least: float) -> None:
    needs(library)
    torch.manual_seed(0)
    model, example = models.build(models.Entry(library, name, size))
    masks = sc.prune(
        model,
        criterion="l1",
        granularity="channel",
        budget=0.5,
        example=example,
        options=sc.PruneOptions(allow_collapse=True),
    )
    small = sc.shrink(model, masks, example)
    assert small.proof.error < 1e-9
    assert small.proof.scale > 1e-6
    gone = 1 - analyse(small.model, example).macs() / analyse(model, example).macs()
    assert gone >= least


@pytest.mark.parametrize("name", sorted(hf.CONFIGS))
def test_hugging_face(name: str) -> None:
    needs("hf")
    needs("torchvision")
    torch.manual_seed(0)
    model, example = hf.build(name)
    options = sc.PruneOptions(allow_collapse=True, parameters=hf.PARAMETERS.get(name))
    masks = sc.prune(model, "l1", "channel", 0.5, example=example, options=options)
    small = sc.shrink(model, masks, example)
    assert small.proof.error < (1e-9 if small.proof.dtype == "float64" else 1e-4)
    assert small.proof.scale > 1e-6
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, small.model))
    assert after < 0.97 * before


@pytest.mark.parametrize("name", ["llama", "mistral", "mixtral", "qwen3", "gemma", "phi3", "t5"])
def test_the_configuration_makes_the_round_trip(name: str, tmp_path: Path) -> None:
    needs("hf")
    model, example = hf.build(name)
    masks = sc.prune(
        model,
        granularity="channel",
        budget=0.5,
        example=example,
        options=sc.PruneOptions(parameters=hf.PARAMETERS.get(name)),
    )
    small = sc.shrink(model, masks, example)
    assert small.model.config.num_attention_heads == 2 or name == "t5"
    assert getattr(small.model.config, "intermediate_size", 64) == 64
    assert any(key.startswith("config.") for key in small.plan.attributes[""])
    small.model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(**example)[0], small.model.eval()(**example)[0])
    untouched, _ = hf.build(name)
    assert model.config.to_dict() == untouched.config.to_dict()


@pytest.mark.parametrize("name", ["t5", "llama", "gemma2"])
def test_smaller_heads_make_the_round_trip(name: str, tmp_path: Path) -> None:
    """T5 turns and scales nothing; the others say their frequencies, and Llama the scale of its attention."""
    needs("hf")
    model, example = hf.build(name)
    if name == "llama":  # frequencies that are not the plain ones
        model.config.rope_parameters = {
            "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
        }  # fmt: skip
        model = type(model)(model.config).eval()
    small = sc.shrink(model, sc.prune(model, granularity="head_size", budget=0.5, example=example), example)
    assert small.proof.error < 1e-9
    assert not small.unsaid
    assert getattr(small.model.config, "d_kv" if name == "t5" else "head_dim") == 8
    small.model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(**example)[0], small.model.eval()(**example)[0], rtol=0, atol=2e-6)


def test_a_config_that_refuses_smaller_heads_is_left_alone() -> None:
    """Phi-3 checks the factors of its rotary embedding against a size of heads that it works out by itself."""
    needs("hf")
    model, example = hf.build("phi3")
    small = sc.shrink(model, sc.prune(model, granularity="head_size", budget=0.5, example=example), example)
    assert small.proof.error < 1e-9
    assert "its configuration refuses these widths" in small.unsaid
    assert getattr(small.model.config, "head_dim", None) == getattr(model.config, "head_dim", None)


def test_experts_get_narrower_all_alike() -> None:
    """The same hidden channels leave every expert; by batched products the proof is in float64."""
    needs("hf")
    model, example = hf.build("mixtral")
    model.config._experts_implementation = "batched_mm"
    experts = model.model.layers[0].mlp.experts
    assert experts.config is model.config
    masks = sc.prune(
        model, "l1", "channel", 0.5, example=example, options=sc.PruneOptions(parameters="*.experts.*")
    )
    small = sc.shrink(model, masks, example)
    assert (small.proof.dtype, small.proof.error < 1e-9) == ("float64", True)
    narrow = small.model.model.layers[0].mlp.experts
    assert narrow.gate_up_proj.shape == (4, 128, 64)
    assert narrow.down_proj.shape == (4, 64, 64)


def test_normalised_heads_say_why_they_stay_as_wide_as_they_are() -> None:
    needs("hf")
    model, example = hf.build("qwen3")
    explained = sc.explain(model, example, head_size=True)
    assert not [group for group in explained.groups if "attn" in group.name]
    values = [lock for lock in explained.locks if "v_proj" in str(lock.axes)]
    assert any("fused attention takes values of its queries' size" in lock.reason for lock in values)


def test_a_config_that_cannot_say_it_is_left_alone() -> None:
    """BERT's config has no field for fewer heads of the same size: the plan loads such a model."""
    needs("hf")
    model, example = hf.build("bert")
    small = sc.shrink(model, sc.prune(model, granularity="head", budget=0.5, example=example), example)
    assert small.model.config.num_attention_heads == 4
    assert "no field for these widths" in small.unsaid
    assert "write it with sc.save_pretrained" in str(small)
    fresh, _ = hf.build("bert")
    small.plan.apply_(fresh).load_state_dict(small.model.state_dict())
    with torch.no_grad():
        assert torch.equal(fresh(**example)[0], small.model.eval()(**example)[0])


def test_mlp_width_of_bert_makes_the_round_trip(tmp_path: Path) -> None:
    needs("hf")
    model, example = hf.build("bert")
    masks = sc.prune(
        model,
        granularity="channel",
        budget=0.5,
        example=example,
        options=sc.PruneOptions(only=["*.intermediate.dense", "*.output.dense"]),
    )
    small = sc.shrink(model, masks, example)
    assert small.model.config.intermediate_size == 64
    small.model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(**example)[0], small.model.eval()(**example)[0])


@pytest.mark.parametrize("name", ["swin_t", "shufflenet_v2_x0_5"])
def test_a_rewritten_model_compiles_scripts_and_copies_as_the_dense_one_does(name: str) -> None:
    """Cut at 64 pixels; compiled, scripted, copied and pickled it takes 64 and 128, where more windows shift."""
    needs("torchvision")
    torch.manual_seed(0)
    model, x = models.build(models.Entry("torchvision", name, 64))
    other = torch.randn(2, 3, 128, 128)
    masks = sc.prune(model, "l2", "channel", 0.5, example=x, options=sc.PruneOptions(allow_collapse=True))
    small = cut(model, masks, x).model.eval()
    assert sum(p.numel() for p in small.parameters()) < 0.6 * sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        torch._dynamo.reset()
        assert torch._dynamo.explain(small)(other).graph_break_count == 0
        torch._dynamo.reset()
        torch.jit.script(model)  # the dense one does
        compiled = torch.compile(small, backend="eager", fullgraph=True)
        made = [compiled, torch.jit.script(small), copy.deepcopy(small), pickle.loads(pickle.dumps(small))]
        for inputs in (x, other):
            want = small(inputs)
            for one in made:
                assert torch.allclose(one(inputs), want, rtol=0, atol=1e-5 * float(want.abs().max()))
