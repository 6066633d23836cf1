"""A shrunk Hugging Face model as a folder: loaded without secateur, the same to the bit; and what is refused."""

from __future__ import annotations

import functools
import json
import threading
import types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.adapters import _fresh, hf_forms, hf_modelling, huggingface
from secateur.adapters.hf_layers import with_fewer_layers
from secateur.adapters.served import Served
from secateur.errors import FormatError, NothingToDoError, OptionError, ProofError

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def shrunk():
    _fresh._declare_torchvision()
    import transformers

    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_embd=32,
        n_inner=128,
        n_layer=3,
        n_head=4,
        vocab_size=99,
        n_positions=32,
        eos_token_id=1,
        bos_token_id=1,
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    example = {"input_ids": torch.randint(3, 90, (2, 7))}
    masks = sc.prune(model, "l1", "channel", sc.budget.Overall(0.5), example=example)
    small = sc.shrink(model, masks, example)
    widths = {layer.mlp.c_fc.nf for layer in small.model.transformer.h}
    assert len(widths) > 1
    return model, small, example


@pytest.fixture(scope="module")
def folder(shrunk, tmp_path_factory):
    _, small, example = shrunk
    target = tmp_path_factory.mktemp("hub") / "small"
    options = sc.HuggingFaceOptions(max_shard_size="20KB")
    done = sc.save_pretrained(small, target, example, options=options)
    assert (done.form, done.loader, done.error) == ("code", "AutoModelForCausalLM", 0.0)
    assert f"as code (the configuration cannot state the widths of {done.differing[0]!r}" in str(done)
    assert "trust_remote_code=True" in str(done)
    return target


def test_uneven_widths_load_without_secateur_from_several_shards(folder):
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    source = (folder / "modeling_shrunk.py").read_text()
    assert "secateur" not in source
    assert "class ShrunkGPT2LMHeadModel(GPT2LMHeadModel)" in source
    assert "| `transformer.h.0.mlp.c_fc.weight` | 32 x " in (folder / "README.md").read_text()
    found = sc.serve_check(folder, allow_code=True, repeats=1)
    assert found.holds
    assert found.error == 0.0
    assert "outputs and bytes are as promised" in str(found)


def test_the_code_of_a_folder_runs_only_when_it_is_allowed(folder):
    with pytest.raises(OptionError, match=r"brings its own modelling file.*--allow-code"):
        sc.serve_check(folder)


@pytest.mark.slow
def test_a_promise_that_is_not_kept_is_named(folder, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    bent = tmp_path / "bent"
    shutil.copytree(folder, bent)
    shard = sorted(bent.glob("model-*.safetensors"))[-1]
    tensors = load_file(shard)
    save_file({name: each + 0.5 for name, each in tensors.items()}, shard, metadata={"format": "pt"})
    found = sc.serve_check(bent, allow_code=True, repeats=1)
    assert not found.holds
    assert any("its content differs from the promised one" in each for each in found.problems)
    assert any("outputs differ by" in each for each in found.problems)


def test_a_hostile_promise_is_no_promise(tmp_path):
    (tmp_path / "secateur").mkdir()
    data = {"version": 1, "request": {"runtime": "transformers", "loader": "os.system"}}
    (tmp_path / "secateur" / "promise.json").write_text(json.dumps(data))
    (tmp_path / "secateur" / "example.safetensors").write_bytes(b"")
    with pytest.raises(FormatError, match=r"expected a promise that secateur wrote.*loader 'os\.system'"):
        sc.serve_check(tmp_path)
    with pytest.raises(FormatError, match="expected an artefact with"):
        sc.serve_check(tmp_path / "nothing")


def test_a_folder_that_computes_something_else_is_not_written(shrunk, tmp_path, monkeypatch):
    _, small, example = shrunk

    def another(request, inputs):
        assert (request.path / "config.json").is_file()
        found = hf_forms.outputs_of(small.model, inputs, request.generate)
        return Served({**found, "logits": found["logits"] + 1}, 0.0)

    monkeypatch.setattr(huggingface, "serve", another)
    with pytest.raises(ProofError, match=r"its outputs differ by .* of the largest; expected none"):
        sc.save_pretrained(small, tmp_path / "wrong", example)
    assert list(tmp_path.iterdir()) == []


def test_even_widths_are_a_plain_configuration(shrunk, tmp_path):
    model, _, example = shrunk
    only = sc.PruneOptions(only=["*.mlp.*"])
    small = sc.shrink(model, sc.prune(model, "l1", "channel", 0.5, example=example, options=only), example)
    quick = sc.HuggingFaceOptions(check=False, form="config")
    done = sc.save_pretrained(small, tmp_path / "even", example, options=quick)
    config = json.loads((tmp_path / "even" / "config.json").read_text())
    assert done.form == "config"
    assert config["n_inner"] == 64
    assert "auto_map" not in config
    assert not (tmp_path / "even" / "modeling_shrunk.py").exists()


def llama():
    _fresh._declare_torchvision()
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return transformers.LlamaForCausalLM(config).eval()


def test_a_buffer_that_moving_to_bfloat16_rounded_is_named_with_what_to_do(tmp_path, monkeypatch):
    """No file holds the rotary frequencies, and `from_pretrained` builds them in float32."""

    def served(request, inputs):
        loaded = type(model).from_pretrained(request.path, dtype="auto").eval()
        return Served(hf_forms.outputs_of(loaded, inputs, request.generate), 0.0)

    monkeypatch.setattr(huggingface, "serve", served)
    model = llama().to(torch.bfloat16)
    example = {"input_ids": torch.randint(3, 64, (2, 7))}
    remedy = (
        r"build this module again: model\.model\.rotary_emb = LlamaRotaryEmbedding\(config=model\.config\)"
    )
    with pytest.raises(
        ProofError, match=r"model\.rotary_emb\.inv_freq is rounded to torch\.bfloat16.*" + remedy
    ):
        sc.save_pretrained(model, tmp_path / "rounded", example)
    assert list(tmp_path.iterdir()) == []
    model.model.rotary_emb = type(model.model.rotary_emb)(config=model.config)
    assert sc.save_pretrained(model, tmp_path / "exact", example).error == 0.0


def test_a_folder_that_does_not_run_says_what_to_do_instead(shrunk, tmp_path, monkeypatch):
    _, small, example = shrunk

    def fails(request, inputs):
        raise ProofError(f"{request.path}: transformers cannot load and run it: RuntimeError: sizes")

    monkeypatch.setattr(huggingface, "serve", fails)
    with pytest.raises(
        ProofError, match=r"RuntimeError: sizes\. Nothing was written to .*; use small\.save and"
    ):
        sc.save_pretrained(small, tmp_path / "wrong", example)
    assert list(tmp_path.iterdir()) == []


def test_the_helper_of_a_modelling_file_needs_no_import_but_torch():
    scope = {"torch": torch}
    exec(hf_modelling._helper(), scope)
    assert scope["_secateur_resized"]((4, 8, 6), (1, 2), (2, (1, 3))) == (4, 2, 2)
    assert scope["_secateur_resized"](8, (0, 3)) == 3


def test_smaller_heads_are_a_plain_configuration_and_computed_up_to_rounding(tmp_path, monkeypatch):
    """Half as many heads, and heads of half the size, have the same shapes; only the second is what was cut."""
    model = llama()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.2)
    example = {"input_ids": torch.randint(3, 64, (2, 7))}
    small = sc.shrink(model, sc.prune(model, "l2", "head_size", 0.5, example=example), example)
    config = small.model.config
    assert (small.unsaid, config.num_attention_heads, config.head_dim) == ("", 4, 4)
    assert config.rope_parameters["rope_type"] == "longrope"
    seen = []

    def served(request, inputs):
        loaded = type(model).from_pretrained(request.path).eval()
        seen.append(hf_forms.outputs_of(loaded, inputs, request.generate))
        return Served(seen[-1], 0.0)

    monkeypatch.setattr(huggingface, "serve", served)
    done = sc.save_pretrained(small, tmp_path / "small", example)
    assert (done.form, done.differing) == ("config", ())
    wanted = small.model.eval()(**example).logits
    apart = ((seen[0]["logits"] - wanted).abs().max() / wanted.abs().max()).item()
    assert apart == pytest.approx(done.error, rel=1e-3)
    assert 0 < done.error < 1e-5

    rope = {**config.rope_parameters, "short_factor": [1.0, 2.0], "long_factor": [1.0, 2.0]}
    config.rope_parameters = rope  # other frequencies than those that were kept
    quick = sc.HuggingFaceOptions(check=False, form="config")
    with pytest.raises(OptionError, match=r"form 'config': the configuration has no field for what"):
        sc.save_pretrained(small, tmp_path / "wrong", example, options=quick)


def test_values_alone_become_smaller_where_queries_are_normalised_and_attention_is_not_fused():
    _fresh._declare_torchvision()
    import transformers

    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=64,
        hidden_size=48,
        intermediate_size=100,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=20,
    )
    model = transformers.Qwen3ForCausalLM(config).eval()
    example = {"input_ids": torch.randint(3, 64, (2, 9))}
    with pytest.raises(NothingToDoError, match="no attention heads that can become smaller"):
        sc.prune(model, "l2", "head_size", 0.5, example=example)
    model.set_attn_implementation("eager")
    small = sc.shrink(model, sc.prune(model, "l2", "head_size", 0.5, example=example), example)
    attention = small.model.model.layers[0].self_attn
    assert [each.out_features for each in (attention.q_proj, attention.k_proj, attention.v_proj)] == [
        80,
        40,
        20,
    ]


def test_numbers_that_modules_keep_and_do_not_use_need_no_modelling_file(tmp_path, capfd):
    """`intermediate_size` of Llama's feed-forward layers is read when they are built, and never again."""
    model = llama()
    example = {"input_ids": torch.randint(3, 64, (2, 7))}
    small = sc.shrink(model, sc.prune(model, "l2", "channel", 0.5, example=example), example)
    quick = sc.HuggingFaceOptions(check=False)
    done = sc.save_pretrained(small, tmp_path / "even", example, options=quick)
    assert (done.form, small.model.config.intermediate_size) == ("config", 32)
    assert "Writing model shards" not in capfd.readouterr().err
    small.model.save_pretrained(tmp_path / "by transformers")  # whose progress bar is as it was
    assert "Writing model shards" in capfd.readouterr().err
    again = type(model).from_pretrained(tmp_path / "even").eval()
    assert torch.equal(again(**example).logits, small.model.eval()(**example).logits)

    small.model.model.layers[1].self_attn.scaling *= 2  # a number that the outputs depend on
    done = sc.save_pretrained(small, tmp_path / "scaled", example, options=quick)
    assert done.form == "code"
    assert "model.layers.1.self_attn" in done.differing


def _with_dropout(model):
    model.model.layers[1].self_attn.attention_dropout = 0.3


def _with_a_window(model):
    model.model.layers[1].self_attn.sliding_window = 16


def _with_fewer_buckets(model):
    model.decoder.block[0].layer[0].SelfAttention.relative_attention_num_buckets = 16


def _with_another_rate(model):
    model.encoder.block[1].layer[1].dropout.p = 0.7


@pytest.mark.parametrize(
    ("family", "change", "where", "name"),
    [
        ("Llama", _with_dropout, "model.layers.1.self_attn", "attention_dropout"),
        ("Qwen2", _with_a_window, "model.layers.1.self_attn", "sliding_window"),
        (
            "T5",
            _with_fewer_buckets,
            "decoder.block.0.layer.0.SelfAttention",
            "relative_attention_num_buckets",
        ),
        ("T5", _with_another_rate, "encoder.block.1.layer.1.dropout", "p"),
    ],
)
def test_a_number_that_an_example_does_not_show_keeps_its_modelling_file(
    family, change, where, name, tmp_path
):
    """Dropout rates count in training alone, windows and buckets of positions in longer texts alone."""
    _fresh._declare_torchvision()
    import transformers

    example = {"input_ids": torch.randint(3, 64, (2, 7))}
    if family == "T5":
        config = transformers.T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
        model = transformers.T5ForConditionalGeneration(config).eval()
        example["decoder_input_ids"] = example["input_ids"]
    else:
        config = getattr(transformers, f"{family}Config")(**llama().config.to_diff_dict())
        model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    small = sc.shrink(model, sc.prune(model, "l2", "channel", 0.5, example=example), example)
    quick = sc.HuggingFaceOptions(check=False, generate=0)
    assert sc.save_pretrained(small, tmp_path / "even", example, options=quick).form == "config"
    change(small.model)
    done = sc.save_pretrained(small, tmp_path / "changed", example, options=quick)
    assert (done.form, where in done.differing) == ("code", True)
    config = json.loads((tmp_path / "changed" / "config.json").read_text())
    assert config[hf_modelling.KEY][where]["attributes"][name] in (0.3, 16, 0.7)
    only = sc.HuggingFaceOptions(check=False, generate=0, form="config")
    with pytest.raises(OptionError, match=f"no field for what {where!r} differs in"):
        sc.save_pretrained(small, tmp_path / "plain", example, options=only)


def _smaller_heads():
    model = llama()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.2)
    example = {"input_ids": torch.randint(3, 64, (2, 7))}
    return sc.shrink(model, sc.prune(model, "l2", "head_size", 0.5, example=example), example), example


@pytest.mark.parametrize("why", ["large", "out of memory"])
def test_without_memory_for_float64_outputs_are_compared_in_the_models_own_type(why, tmp_path, monkeypatch):
    small, example = _smaller_heads()
    asked = []

    def no_memory(module):
        asked.append(module)
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    monkeypatch.setattr(nn.Module, "double", no_memory)
    if why == "large":
        monkeypatch.setattr(hf_forms, "_LARGE", 0)
    quick = sc.HuggingFaceOptions(check=False, generate=0)
    assert sc.save_pretrained(small, tmp_path / "small", example, options=quick).form == "config"
    assert bool(asked) == (why == "out of memory")


def test_rounding_has_a_bound_in_the_models_own_type_too(tmp_path, monkeypatch):
    small, example = _smaller_heads()
    monkeypatch.setattr(hf_forms, "rounding_allowed", lambda kinds: 1e-12)
    only = sc.HuggingFaceOptions(check=False, generate=0, form="config")
    with pytest.raises(OptionError, match=r"form 'config': the configuration has no field for what"):
        sc.save_pretrained(small, tmp_path / "small", example, options=only)


class _Turns(nn.Module):
    """A module that is built from the configuration of a part, and has a buffer that only some are given."""

    def __init__(self, config):
        super().__init__()
        self.register_buffer("inv_freq", torch.full((3,), config.step), persistent=False)


class _Part(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.turns = nn.ModuleList([_Turns(config)])


class _Whole(nn.Module):
    """A model whose own configuration also builds the module, to other numbers."""

    built = 0

    def __init__(self, config):
        super().__init__()
        type(self).built += 1
        self.config = config
        self.part = _Part(config.part)
        self.register_buffer("table", torch.ones(2), persistent=False)


def test_only_advice_that_works_is_given_for_rounded_buffers():
    from types import SimpleNamespace

    model = _Whole(SimpleNamespace(step=0.7, part=SimpleNamespace(step=0.3)))
    model.part.turns[0].register_buffer("late", torch.ones(2), persistent=False)
    model.part.turns[0]._buffers = dict(sorted(model.part.turns[0]._buffers.items(), reverse=True))
    said = huggingface._rounded(model.to(torch.bfloat16))
    assert said.startswith("part.turns.0.inv_freq is rounded to torch.bfloat16")
    assert said.endswith("model.part.turns[0] = _Turns(config=model.part.config)")
    assert _Whole.built == 1  # the whole model is not built again for its own buffer
    model.part.turns[0].inv_freq += 1  # which no configuration gives
    assert huggingface._rounded(model) == ""


def _rounding(forward):
    """A stand-in for the autocast of accelerate: a wrapper on the model itself, which knows what it wraps."""

    @functools.wraps(forward)
    def wrapper(self, *args, **kwargs):
        outputs = forward(self, *args, **kwargs)
        outputs.logits = outputs.logits.bfloat16().float()
        return outputs

    return wrapper


def test_a_wrapper_that_training_left_on_the_model_is_not_part_of_what_is_written(tmp_path):
    model, example = llama(), {"input_ids": torch.randint(2, 60, (2, 5))}
    model.forward = types.MethodType(_rounding(type(model).forward), model)
    left = model.forward
    rounded = model(**example).logits
    found = hf_forms.outputs_of(model, example, 0)["logits"]
    assert torch.equal(found.bfloat16().float(), rounded)
    assert not torch.equal(found, rounded)
    assert model.forward is left
    options = sc.HuggingFaceOptions(check=False)
    sc.save_pretrained(model, tmp_path / "written", example, options=options)
    assert model.forward is left


def test_another_forward_on_the_model_is_named_with_what_to_do(tmp_path):
    model, example = llama(), {"input_ids": torch.randint(2, 60, (2, 5))}

    def shifted(**kwargs):
        return type(model).forward(model, **kwargs)

    model.forward = shifted
    with pytest.raises(OptionError, match=r"has a forward of its own, .*shifted, .*del model\.forward"):
        sc.save_pretrained(model, tmp_path / "refused", example)
    assert not (tmp_path / "refused").exists()


def test_what_cannot_be_written_is_refused(shrunk, tmp_path):
    _, small, example = shrunk
    with pytest.raises(OptionError, match="Linear: expected a model of transformers"):
        sc.save_pretrained(nn.Linear(2, 2), tmp_path / "x", example)
    with pytest.raises(OptionError, match=r"form 'config': the configuration has no field for"):
        sc.save_pretrained(small, tmp_path / "x", example, options=sc.HuggingFaceOptions(form="config"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("")
    with pytest.raises(OptionError, match="expected a new or an empty folder"):
        sc.save_pretrained(small, tmp_path / "full", example)


def test_fewer_layers_are_counted_in_the_configuration(shrunk):
    import copy

    model, _, _ = shrunk
    fewer = copy.deepcopy(model)
    del fewer.transformer.h[1]
    assert with_fewer_layers(fewer, fewer.config).num_hidden_layers == 2
    assert fewer.config.num_hidden_layers == 3


class _Hub(BaseHTTPRequestHandler):
    """The part of the Hub's HTTP interface that one upload of small files asks for."""

    calls: list[tuple[str, bytes]] = []

    def _answer(self, data):
        body = json.dumps(data).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self._answer({"id": "me/small", "sha": "0" * 40, "siblings": [], "private": True})

    def do_POST(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.calls.append((self.path, body))
        here = f"http://{self.headers['Host']}"
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            self._answer(
                {
                    "files": [
                        {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                        for each in files
                    ]
                }
            )
        elif "/commit/" in self.path:
            self._answer(
                {"commitUrl": f"{here}/me/small/commit/{'0' * 40}", "commitOid": "0" * 40, "success": True}
            )
        else:
            self._answer({"url": f"{here}/me/small", "name": "me/small", "id": "me/small"})

    def log_message(self, *args):
        pass


def test_a_folder_is_pushed_as_one_commit(folder, tmp_path, monkeypatch):
    import base64

    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # the stand-in is on this machine
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        endpoint = f"http://127.0.0.1:{server.server_port}"
        where = sc.push_to_hub(folder, "me/small", token="hf_none", endpoint=endpoint)
    finally:
        server.shutdown()
        server.server_close()
    assert where.startswith(endpoint)
    body = next(body for path, body in _Hub.calls if "/commit/" in path)
    lines = [json.loads(line) for line in body.splitlines()]
    sent = {
        line["value"]["path"]: base64.b64decode(line["value"]["content"])
        for line in lines
        if line["key"] == "file"
    }
    files = {
        str(each.relative_to(folder)): each.read_bytes() for each in Path(folder).rglob("*") if each.is_file()
    }
    assert sent == {name: data for name, data in files.items() if "__pycache__" not in name}
    with pytest.raises(OptionError, match=r"got no config\.json in it"):
        sc.push_to_hub(tmp_path, "me/small")
