"""`pack`: write one .sct file, load it into a freshly built model, and continue with the loaded model.

Without an option that rounds, the file is lossless, and a tensor that is not loaded bit for bit fails the step.

>>> PackStep(file="small.sct").file
'small.sct'
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from secateur.coding import indices
from secateur.container.archive import save
from secateur.container.loading import load
from secateur.container.save_options import SaveOptions, check_names
from secateur.core.measurement import Measurement, Measurements
from secateur.errors import OptionError, ProofError
from secateur.lab.state import State
from secateur.lab.steps import Result, Step, Work
from secateur.structure.cut.plan import ShrinkPlan

__all__ = ["PackStep"]


class PackStep(Step):
    """Write the model as one coded file, and load it."""

    measures: ClassVar[tuple[str, ...] | None] = (
        "file_bytes",
        "tensor_bytes",
        "original_bytes",
        "file_ratio",
        "changed_tensors",
    )
    file: str = Field("model.sct", description="the file's name among the results")
    batch_norm: str | int | None = Field(
        None, description="fold batch norm: fp32, fp16, bf16, or 2 to 12 bits"
    )
    biases: int | None = Field(None, description="round the other biases to this number of bits")
    codebook_bits: int | None = Field(
        None, description="round the values of codebooks to this number of bits"
    )
    precision: str | None = Field(None, description="store tensors that are not shared as fp16 or bf16")
    names: Literal["file", "model"] = Field(
        "file",
        description="file: the file holds the tensors' names; model: the model it is loaded into has them",
    )
    coder: str = Field(indices.DEFAULT, description="fast, mixed or strong: smaller files take longer")

    def check(self, model: nn.Module, before: list[str]) -> None:
        """Check the options, and that the file lies inside the results' folder."""
        if not self.file or Path(self.file).name != self.file or self.file.startswith("."):
            raise OptionError(f"step {self.label!r}: file: expected a plain file name, got {self.file!r}")
        check_names(self.names)
        self._save_options()

    def _save_options(self) -> SaveOptions:
        return SaveOptions(self.batch_norm, self.biases, self.codebook_bits, self.precision, self.coder)

    def run(self, state: State, work: Work) -> Result:
        """Save, load, compare."""
        before = {name: value.clone() for name, value in state.model.state_dict().items()}
        fresh, earlier = (work.build(), None) if work.without_weights is None else work.without_weights()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / self.file
            saved = save(
                state.model,
                path,
                state.codebooks,
                masks=state.masks,
                plan=_all_cuts(earlier, state.plan),
                names=self.names,
                options=self._save_options(),
            )
            model = load(path, into=fresh)
            data = path.read_bytes()
        lossless = all(
            option is None for option in (self.batch_norm, self.biases, self.codebook_bits, self.precision)
        )
        changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
        if lossless and changed:
            raise ProofError(
                f"step {self.label!r}: {changed[0]!r} came back from the file different ({len(changed)} tensors "
                "in all); the file was not kept"
            )
        same = (
            "every tensor came back bit for bit" if lossless else f"{len(changed)} tensors rounded as asked"
        )
        files = {**state.files, self.file: data}
        codebooks = {name: book for name, book in state.codebooks.items() if name not in changed}
        after = State(model, masks=state.masks, codebooks=codebooks, plan=state.plan, files=files)
        original = sum(t.numel() * t.element_size() for t in work.build().state_dict().values())
        measured = _rows(len(data), saved.dense, original, len(changed))
        return Result(after, measured, {}, f"{len(data):,} bytes; {same}")


def _all_cuts(earlier: ShrinkPlan | None, plan: str | None) -> ShrinkPlan | str | None:
    """The plan of the cuts that the recipe's weights came with, and of those that its steps made."""
    if earlier is None or plan is None:
        return plan if earlier is None else earlier
    return earlier.then(ShrinkPlan.from_json(plan))


def _rows(size: int, tensors: int, original: int, changed: int) -> Measurements:
    """The file's size, that of its tensors and of the model as first built, and how many tensors were rounded."""
    return Measurements(
        [
            Measurement("file_bytes", size, "bytes", "bytes of the .sct file on disk, everything included"),
            Measurement("tensor_bytes", tensors, "bytes", "bytes of the file's tensors in memory"),
            Measurement(
                "original_bytes", original, "bytes", "bytes of the tensors of the model as first built"
            ),
            Measurement("file_ratio", original / size, "x", "original_bytes over file_bytes"),
            Measurement("changed_tensors", changed, "", "tensors that did not come back bit for bit"),
        ]
    )
