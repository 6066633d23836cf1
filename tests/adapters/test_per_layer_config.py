"""`per_layer_config`: widths that differ from layer to layer, where a family reads them from its configuration.

No family of the installed transformers builds such widths by itself, so a family of the tests' own stands in: it reads
`config.per_layer_config`, as the library's documentation says a model does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.adapters import _fresh
from secateur.errors import OptionError

pytest.importorskip("transformers")
_fresh._declare_torchvision()

from transformers import PretrainedConfig, PreTrainedModel  # noqa: E402

X = {"x": torch.randn(2, 8, generator=torch.Generator().manual_seed(0))}


class StandInConfig(PretrainedConfig):
    model_type = "secateur_stand_in"

    def __init__(self, width: int = 12, **others: Any):
        self.width, self.num_hidden_layers = width, 3
        super().__init__(**others)


class Layer(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.up, self.down = nn.Linear(8, width), nn.Linear(width, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.up(x).relu())


class StandIn(PreTrainedModel):
    config_class = StandInConfig
    reads = True

    def __init__(self, config: Any):
        super().__init__(config)
        own = config.per_layer_config if self.reads and config.is_heterogeneous else [config] * 3
        self.layers = nn.ModuleList(Layer(own[index].width) for index in range(3))
        self.post_init()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Deaf(StandIn):
    """Builds every layer alike, whatever the configuration says of it."""

    reads = False


def uneven(kind: type[StandIn] = StandIn) -> sc.Shrunk:
    """Widths of 12, 9 and 4 in place of 12."""
    torch.manual_seed(0)
    model = kind(StandInConfig()).eval()
    if not hasattr(StandInConfig, "is_heterogeneous"):
        pytest.skip("the installed transformers has no per_layer_config")
    widths = {"layers.1.up.weight": 9, "layers.2.up.weight": 4}
    masks = sc.Masks(
        {name: (torch.arange(12) < kept)[:, None].expand(12, 8) for name, kept in widths.items()}
    )
    return sc.shrink(model, masks, X)


def test_a_family_that_reads_it_gets_its_widths_from_the_configuration(tmp_path: Path) -> None:
    small = uneven()
    assert [layer.up.out_features for layer in small.model.layers] == [12, 9, 4]
    done = sc.save_pretrained(small, tmp_path / "small", X, options=sc.HuggingFaceOptions(check=False))
    assert done.form == "per_layer_config"
    assert not list((tmp_path / "small").glob("*.py")), "no modelling file is needed"
    written = json.loads((tmp_path / "small" / "config.json").read_text(encoding="utf-8"))
    assert {key: value["width"] for key, value in written["per_layer_config"].items()} == {"1": 9, "2": 4}
    again = StandIn.from_pretrained(tmp_path / "small").eval()
    with torch.no_grad():
        assert torch.equal(again(**X), small.model(**X))


def test_a_family_that_does_not_read_it_is_refused_that_form(tmp_path: Path) -> None:
    small = uneven(Deaf)
    options = sc.HuggingFaceOptions(check=False, form="per_layer_config")
    with pytest.raises(OptionError, match="cannot express with it how"):
        sc.save_pretrained(small, tmp_path / "small", X, options=options)
    assert not (tmp_path / "small").exists()
