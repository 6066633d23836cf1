"""Verbs on files of weights: `pack`, `unpack`, `inspect`. No model class is needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from secateur.cli.calibrating import CalibrationFlags
from secateur.cli.checkpoints import Memory, bytes_of
from secateur.cli.flags import with_flags
from secateur.cli.given import ModelFlags, ModelOptions
from secateur.cli.options import ProgressFlags
from secateur.cli.output import print_json, progress_bar, written
from secateur.core.missing_files import missing
from secateur.core.terminal import printable, say
from secateur.errors import DataError, OptionError

__all__ = ["VERBS"]

_Sct = Annotated[Path, typer.Argument(help="A .sct file.", show_default=False)]


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise DataError(missing(path)).as_usage()
    return path


MaxBytes = Annotated[
    int | None,
    typer.Option(
        "--max-bytes",
        min=0,
        help="The most bytes of decoded tensors to accept. Default: a limit by the file's size, which an error names.",
    ),
]


@dataclass(frozen=True)
class PackFlags:
    """How the tensors are stored."""

    bits: Annotated[
        int | None,
        typer.Option(
            "--bits", min=1, max=8, help="Share weights: 2**bits values a tensor. Default: lossless."
        ),
    ] = None
    lossless: Annotated[bool, typer.Option("--lossless", help="Every tensor comes back bit for bit.")] = False
    fast: Annotated[bool, typer.Option("--fast", help="A faster coder; the file is somewhat larger.")] = False
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=1,
            help="Processes that share the coding; the bytes are the same. Default: all processors for a large file, "
            "else 1.",
        ),
    ] = None
    max_bytes: MaxBytes = None


@with_flags
def pack(
    source: Annotated[
        Path,
        typer.Argument(help="A .safetensors or .pt file, or a folder with an index.", show_default=False),
    ],
    target: Annotated[Path, typer.Argument(help="The .sct file to write.", show_default=False)],
    flags: PackFlags,
    model: Annotated[
        str | None, typer.Option("--model", help="With --calibrate: the model that the weights are for.")
    ] = None,
    option: ModelOptions = None,
    *,
    calibration: CalibrationFlags,
    output: ProgressFlags,
) -> None:
    """Write any checkpoint, a file or a folder, as one small file."""
    if calibration.wanted:
        _pack_on_images(source, target, flags, ModelFlags(model or "", source, option), calibration, output)
        return
    if model is not None or option:
        raise OptionError("pack: --model and --option are for --calibrate DATA; leave them out, or give it")
    from secateur.container.pack import pack as write

    with progress_bar(output.quiet) as on_progress:
        done = write(
            source,
            target,
            bits=flags.bits,
            lossless=flags.lossless,
            fast=flags.fast,
            progress=on_progress,
            workers=flags.workers,
            max_bytes=flags.max_bytes,
        )
    if output.json:
        print_json(
            {
                "file": str(done.path),
                "file_bytes": done.size,
                "source_bytes": done.source,
                "ratio": done.ratio,
                "left_out": list(done.left_out),
            }
        )
        return
    say(f"{done.path}: {done.size:,} bytes from {done.source:,} ({done.ratio:.2f}x), {done.tensors} tensors")
    if done.left_out:
        first, more = ", ".join(map(printable, done.left_out[:3])), len(done.left_out) - 3
        why = "not tensors" if flags.bits is None else "no weights of the model"
        say(f"left out, because they are {why}: {first}{f' and {more} more' if more > 0 else ''}")


def _pack_on_images(
    source: Path,
    target: Path,
    flags: PackFlags,
    model: ModelFlags,
    calibration: CalibrationFlags,
    output: ProgressFlags,
) -> None:
    """Share the weights by the error of the model's outputs on images, and write the file."""
    from secateur.container.archive import save
    from secateur.quantize.share import ShareOptions, share

    if not model.model or flags.bits is None or flags.lossless:
        raise OptionError(
            "pack --calibrate shares weights by a model's outputs: give --model NAME and --bits, without --lossless"
        )
    net, plan = model.build_cut()
    options = ShareOptions(tune=calibration.calibrate_passes or None)
    shared = share(net, flags.bits, data=calibration.inputs(net, model.folder()), options=options)
    size, before = save(shared.model, target, plan=plan).size, source.stat().st_size
    if output.json:
        print_json({"file": str(target), "file_bytes": size, "source_bytes": before, "ratio": before / size})
        return
    say(f"{target}: {size:,} bytes from {before:,} ({before / size:.2f}x)")


@with_flags
def unpack(
    source: _Sct,
    target: Annotated[
        Path, typer.Argument(help="The .safetensors file to write, or a new folder.", show_default=False)
    ],
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=1,
            help="Threads for lossless tensors, processes for shared ones. Default: all processors for "
            "many shared weights, else 1.",
        ),
    ] = None,
    max_bytes: MaxBytes = None,
    *,
    output: ProgressFlags,
) -> None:
    """Write a .sct file's tensors as safetensors."""
    from secateur.container.pack import unpack as write

    with progress_bar(output.quiet) as on_progress:
        done = write(_existing(source), target, progress=on_progress, workers=workers, max_bytes=max_bytes)
    if output.json:
        print_json({**written(done.path, done.size), "source_bytes": done.source})
        return
    say(f"{done.path}: {done.size:,} bytes, {done.tensors} tensors")


@with_flags
def inspect(
    file: Annotated[
        Path, typer.Argument(help="A .sct file, a checkpoint, or a folder with an index.", show_default=False)
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="The model of a file that was written without names and shapes, as `measure` takes it.",
        ),
    ] = None,
    option: ModelOptions = None,
    max_bytes: MaxBytes = None,
    memory: Memory = None,
    *,
    output: ProgressFlags,
) -> None:
    """Where every byte of a .sct file goes, with bounds and formulas beside the real sizes; what a checkpoint holds."""
    from secateur.container.inspection import inspect as look
    from secateur.core.file_endings import TORCH_SUFFIXES

    kinds = (".sct", ".safetensors", *sorted(TORCH_SUFFIXES))
    if file.is_file() and file.suffix not in (*kinds, ""):
        raise DataError(
            f"{file}: expected {', '.join(kinds[:-1])} or {kinds[-1]}, or a folder with an index, got {file.suffix!r}"
        ).as_usage()
    if file.is_dir() or file.suffix not in (".sct", ""):
        from secateur.streaming.listed import inspect_checkpoint

        with progress_bar(output.quiet) as on_progress:
            found = inspect_checkpoint(file, bytes_of(memory), progress=on_progress)
        say(found.to_json() if output.json else found.table())
        return

    if option and model is None:
        raise OptionError("--option gives arguments of a model; give --model NAME too")
    into = ModelFlags(model, option=option).build() if model is not None else None
    with progress_bar(output.quiet) as on_progress:
        report = look(_existing(file), into, progress=on_progress, max_bytes=max_bytes)
    say(report.to_json() if output.json else report.table())


VERBS = (pack, unpack, inspect)
