"""secateur: prune, retrain, share, code and measure any PyTorch model, with the proof beside it.

This is the public surface: the verbs, their arguments and their results. A name is imported when it is first used, so
`import secateur` does not import torch. `docs/glossary.md` has one sentence about each name.

>>> import secateur as sc
>>> sc.budget.Overall(0.9).sparsity
0.9
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from secateur.core.plotting import draw_with

if TYPE_CHECKING:
    from secateur import allocation as allocation
    from secateur import budget as budget
    from secateur import criteria as criteria
    from secateur import data as data
    from secateur import errors as errors
    from secateur import granularity as granularity
    from secateur import lab as lab
    from secateur import metrics as metrics
    from secateur import models as models
    from secateur import quantize as quantize
    from secateur import report as report
    from secateur import sparsify as sparsify
    from secateur.adapters.export import Exported as Exported
    from secateur.adapters.export import export as export
    from secateur.adapters.huggingface import HuggingFaceOptions as HuggingFaceOptions
    from secateur.adapters.huggingface import SavedFolder as SavedFolder
    from secateur.adapters.huggingface import push_to_hub as push_to_hub
    from secateur.adapters.huggingface import save_pretrained as save_pretrained
    from secateur.adapters.int8 import Int8Options as Int8Options
    from secateur.adapters.lightning import lightning_callback as lightning_callback
    from secateur.adapters.onnx_model import OnnxModel as OnnxModel
    from secateur.adapters.promises import ServeCheck as ServeCheck
    from secateur.adapters.promises import serve_check as serve_check
    from secateur.adapters.trainer import trainer_callback as trainer_callback
    from secateur.adapters.two_of_four import two_of_four as two_of_four
    from secateur.adapters.ultralytics import save_yolo as save_yolo
    from secateur.adapters.ultralytics import yolo_trainer as yolo_trainer
    from secateur.compensation.compensate import Compensated as Compensated
    from secateur.compensation.compensate import compensate as compensate
    from secateur.compensation.recombined import RecombinedTokens as RecombinedTokens
    from secateur.compensation.shares import error_shares as error_shares
    from secateur.compensation.solver import LeastSquares as LeastSquares
    from secateur.compensation.tuning import Tuning as Tuning
    from secateur.container.archive import SavedFile as SavedFile
    from secateur.container.archive import save as save
    from secateur.container.inspection import FileReport as FileReport
    from secateur.container.inspection import inspect as inspect
    from secateur.container.loading import load as load
    from secateur.container.loading import load_int8 as load_int8
    from secateur.container.pack import Packed as Packed
    from secateur.container.pack import pack as pack
    from secateur.container.pack import unpack as unpack
    from secateur.container.save_options import SaveOptions as SaveOptions
    from secateur.core.codebook import Codebook as Codebook
    from secateur.core.context import Context as Context
    from secateur.core.masks import Masks as Masks
    from secateur.core.measurement import Measurement as Measurement
    from secateur.core.measurement import Measurements as Measurements
    from secateur.core.schedule import Exponential as Exponential
    from secateur.core.schedule import Gradual as Gradual
    from secateur.core.schedule import Iterative as Iterative
    from secateur.core.schedule import OneShot as OneShot
    from secateur.core.scores import Scores as Scores
    from secateur.core.targets import Target as Target
    from secateur.core.targets import select as select
    from secateur.lab import Recipe as Recipe
    from secateur.lab import Store as Store
    from secateur.lab import WorkerPool as WorkerPool
    from secateur.lab.training import GradualPruning as GradualPruning
    from secateur.metrics import Why as Why
    from secateur.metrics import measure as measure
    from secateur.metrics import why as why
    from secateur.metrics.latency import compare as compare
    from secateur.pruning.connectivity import check_connected as check_connected
    from secateur.pruning.dead_neurons import zero_dead_neurons as zero_dead_neurons
    from secateur.pruning.hold import Held as Held
    from secateur.pruning.hold import hold as hold
    from secateur.pruning.low_rank import Factorised as Factorised
    from secateur.pruning.low_rank import factorise as factorise
    from secateur.pruning.prune import PruneOptions as PruneOptions
    from secateur.pruning.prune import prune as prune
    from secateur.quantize.bits_by_error import error_bits as error_bits
    from secateur.quantize.result import Shared as Shared
    from secateur.quantize.share import ShareOptions as ShareOptions
    from secateur.quantize.share import share as share
    from secateur.search.auto import AutoOptions as AutoOptions
    from secateur.search.auto import AutoResult as AutoResult
    from secateur.search.auto import auto as auto
    from secateur.search.compress import compress as compress
    from secateur.search.compressed import Compressed as Compressed
    from secateur.search.compressed import CompressOptions as CompressOptions
    from secateur.search.smallest import SmallestOptions as SmallestOptions
    from secateur.search.smallest import SmallestResult as SmallestResult
    from secateur.search.smallest import smallest as smallest
    from secateur.sensitivity.allocate import AllocateOptions as AllocateOptions
    from secateur.sensitivity.allocate import FoundShares as FoundShares
    from secateur.sensitivity.allocate import allocate as allocate
    from secateur.sensitivity.scan import ScanOptions as ScanOptions
    from secateur.sensitivity.scan import scan as scan
    from secateur.sensitivity.scan_result import Allocation as Allocation
    from secateur.sensitivity.scan_result import Scan as Scan
    from secateur.streaming.block_runs import BlockCluster as BlockCluster
    from secateur.streaming.compensated import BlockOptions as BlockOptions
    from secateur.streaming.compensated import compensate_checkpoint as compensate_checkpoint
    from secateur.streaming.listed import CheckpointReport as CheckpointReport
    from secateur.streaming.listed import inspect_checkpoint as inspect_checkpoint
    from secateur.streaming.pruned import StreamOptions as StreamOptions
    from secateur.streaming.pruned import prune_checkpoint as prune_checkpoint
    from secateur.streaming.rewriting import RewrittenCheckpoint as RewrittenCheckpoint
    from secateur.streaming.shared import share_checkpoint as share_checkpoint
    from secateur.streaming.shrunk import shrink_checkpoint as shrink_checkpoint
    from secateur.structure.cut.plan import ShrinkPlan as ShrinkPlan
    from secateur.structure.depth.leaving import bypassed as bypassed
    from secateur.structure.explanation import Explanation as Explanation
    from secateur.structure.proof import Proof as Proof
    from secateur.structure.proof import ProofOptions as ProofOptions
    from secateur.structure.shrink import Shrunk as Shrunk
    from secateur.structure.shrink import explain as explain
    from secateur.structure.shrink import shrink as shrink
    from secateur.structure.shrunk_files import load_shrunk as load_shrunk
    from secateur.structure.shrunk_files import reestimate_batch_norm as reestimate_batch_norm

__version__ = "0.1.0"

# public name -> module that holds it
_NAMES = {
    "prune": "secateur.pruning.prune",
    "PruneOptions": "secateur.pruning.prune",
    "check_connected": "secateur.pruning.connectivity",
    "zero_dead_neurons": "secateur.pruning.dead_neurons",
    "hold": "secateur.pruning.hold",
    "Held": "secateur.pruning.hold",
    "compensate": "secateur.compensation.compensate",
    "Compensated": "secateur.compensation.compensate",
    "error_bits": "secateur.quantize.bits_by_error",
    "error_shares": "secateur.compensation.shares",
    "factorise": "secateur.pruning.low_rank",
    "Factorised": "secateur.pruning.low_rank",
    "LeastSquares": "secateur.compensation.solver",
    "RecombinedTokens": "secateur.compensation.recombined",
    "Tuning": "secateur.compensation.tuning",
    "shrink": "secateur.structure.shrink",
    "explain": "secateur.structure.shrink",
    "bypassed": "secateur.structure.depth.leaving",
    "Shrunk": "secateur.structure.shrink",
    "ShrinkPlan": "secateur.structure.cut.plan",
    "Proof": "secateur.structure.proof",
    "ProofOptions": "secateur.structure.proof",
    "Explanation": "secateur.structure.explanation",
    "load_shrunk": "secateur.structure.shrunk_files",
    "reestimate_batch_norm": "secateur.structure.shrunk_files",
    "allocate": "secateur.sensitivity.allocate",
    "AllocateOptions": "secateur.sensitivity.allocate",
    "FoundShares": "secateur.sensitivity.allocate",
    "scan": "secateur.sensitivity.scan",
    "ScanOptions": "secateur.sensitivity.scan",
    "Scan": "secateur.sensitivity.scan_result",
    "Allocation": "secateur.sensitivity.scan_result",
    "share": "secateur.quantize.share",
    "ShareOptions": "secateur.quantize.share",
    "Shared": "secateur.quantize.result",
    "save": "secateur.container.archive",
    "load": "secateur.container.loading",
    "load_int8": "secateur.container.loading",
    "SavedFile": "secateur.container.archive",
    "SaveOptions": "secateur.container.save_options",
    "pack": "secateur.container.pack",
    "unpack": "secateur.container.pack",
    "Packed": "secateur.container.pack",
    "inspect": "secateur.container.inspection",
    "FileReport": "secateur.container.inspection",
    "prune_checkpoint": "secateur.streaming.pruned",
    "share_checkpoint": "secateur.streaming.shared",
    "inspect_checkpoint": "secateur.streaming.listed",
    "compensate_checkpoint": "secateur.streaming.compensated",
    "shrink_checkpoint": "secateur.streaming.shrunk",
    "BlockCluster": "secateur.streaming.block_runs",
    "StreamOptions": "secateur.streaming.pruned",
    "BlockOptions": "secateur.streaming.compensated",
    "RewrittenCheckpoint": "secateur.streaming.rewriting",
    "CheckpointReport": "secateur.streaming.listed",
    "export": "secateur.adapters.export",
    "Exported": "secateur.adapters.export",
    "Int8Options": "secateur.adapters.int8",
    "OnnxModel": "secateur.adapters.onnx_model",
    "save_pretrained": "secateur.adapters.huggingface",
    "HuggingFaceOptions": "secateur.adapters.huggingface",
    "SavedFolder": "secateur.adapters.huggingface",
    "push_to_hub": "secateur.adapters.huggingface",
    "trainer_callback": "secateur.adapters.trainer",
    "lightning_callback": "secateur.adapters.lightning",
    "GradualPruning": "secateur.lab.training",
    "save_yolo": "secateur.adapters.ultralytics",
    "yolo_trainer": "secateur.adapters.ultralytics",
    "serve_check": "secateur.adapters.promises",
    "ServeCheck": "secateur.adapters.promises",
    "measure": "secateur.metrics",
    "why": "secateur.metrics",
    "Why": "secateur.metrics",
    "compare": "secateur.metrics.latency",
    "two_of_four": "secateur.adapters.two_of_four",
    "auto": "secateur.search.auto",
    "AutoOptions": "secateur.search.auto",
    "compress": "secateur.search.compress",
    "CompressOptions": "secateur.search.compressed",
    "Compressed": "secateur.search.compressed",
    "AutoResult": "secateur.search.auto",
    "smallest": "secateur.search.smallest",
    "SmallestOptions": "secateur.search.smallest",
    "SmallestResult": "secateur.search.smallest",
    "Recipe": "secateur.lab",
    "Store": "secateur.lab",
    "WorkerPool": "secateur.lab",
    "Masks": "secateur.core.masks",
    "Scores": "secateur.core.scores",
    "Codebook": "secateur.core.codebook",
    "Context": "secateur.core.context",
    "Target": "secateur.core.targets",
    "select": "secateur.core.targets",
    "Measurement": "secateur.core.measurement",
    "Measurements": "secateur.core.measurement",
    "OneShot": "secateur.core.schedule",
    "Iterative": "secateur.core.schedule",
    "Gradual": "secateur.core.schedule",
    "Exponential": "secateur.core.schedule",
}
_PACKAGES = (
    "criteria",
    "granularity",
    "budget",
    "quantize",
    "models",
    "data",
    "metrics",
    "lab",
    "report",
    "sparsify",
    "allocation",
    "errors",
)
# name of an earlier version -> what it is called now
_DEPRECATED = {"tidy": "zero_dead_neurons"}

__all__ = sorted([*_NAMES, *_PACKAGES])


if not TYPE_CHECKING:  # a type checker knows the names above, and reports any other

    def __getattr__(name: str) -> object:
        if name in _DEPRECATED:
            now = _DEPRECATED[name]
            message = f"secateur.{name} is called secateur.{now} now; the old name will be removed in 1.0"
            warnings.warn(message, DeprecationWarning, stacklevel=2)
            name = now
        if name in _NAMES:
            value = getattr(importlib.import_module(_NAMES[name]), name)
            globals()[name] = value
            return value
        if name in _PACKAGES:
            return importlib.import_module(f"secateur.{name}")
        raise AttributeError(
            f"module 'secateur' has no attribute {name!r}; public names: {', '.join(__all__)}"
        )


def _chart(kind: str) -> Callable[[Any], Any]:
    """The function that draws values of a kind; the drawing library is imported here."""
    notebook = importlib.import_module("secateur.report.notebook")
    found: Callable[[Any], Any] = getattr(notebook, kind)
    return found


draw_with(_chart)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
