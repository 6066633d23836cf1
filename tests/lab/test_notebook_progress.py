"""Progress bars in a notebook: drawn by rich into a widget, where the notebook has widgets."""

from __future__ import annotations

import builtins
import importlib.machinery
import io
import re
import sys
import time
from types import ModuleType

import pytest

from secateur.lab.display import LineProgress, LiveProgress, progress_display
from secateur.lab.training.progress import Bars, watcher


class ZMQInteractiveShell:
    """The class of the shell that a notebook's kernel runs."""


class Output:
    """The widget that rich draws into: everything printed within it is shown in place of what was there."""

    shown: list[str]

    def __enter__(self) -> None:
        self._before, sys.stdout = sys.stdout, io.StringIO()

    def __exit__(self, *failure: object) -> None:
        self.shown.append(sys.stdout.getvalue())  # type: ignore[attr-defined]
        sys.stdout = self._before

    def clear_output(self, wait: bool = False) -> None:
        """rich clears the widget before it draws."""

    def close(self) -> None:
        """A bar that is done goes."""


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A notebook's modules by stand-ins; gives what its widget shows."""
    shown: list[str] = []
    Output.shown = shown
    ipython, display, widgets = ModuleType("IPython"), ModuleType("IPython.display"), ModuleType("ipywidgets")
    ipython.get_ipython = ZMQInteractiveShell
    ipython.display = display
    display.display = lambda found, **options: shown.append(str(getattr(found, "html", found)))
    widgets.Output = Output
    widgets.__spec__ = importlib.machinery.ModuleSpec("ipywidgets", None)
    for module in (ipython, display, widgets):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(builtins, "get_ipython", ZMQInteractiveShell, raising=False)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    return shown


def test_a_shell_derived_from_a_notebooks_gets_bars(
    notebook: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", type("Shell", (ZMQInteractiveShell,), {}))
    assert isinstance(progress_display(), LiveProgress)


def test_a_notebook_gets_bars(notebook: list[str]) -> None:
    assert isinstance(progress_display(), LiveProgress)
    bars = watcher("auto")
    assert isinstance(bars, Bars)
    bars.start(2, 10, 0)
    bars.step(1, 5, 0.25)
    end = time.monotonic() + 60
    while not any("loss 0.2500" in text for text in notebook) and time.monotonic() < end:
        time.sleep(0.02)  # rich draws in a thread of its own, ten times a second
    bars.finish()
    plain = [re.sub("<[^>]*>", "", text) for text in notebook]
    assert any("epoch 1/2" in text and "loss 0.2500" in text for text in plain)


def test_without_widgets_or_elsewhere_lines_are_printed(
    notebook: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: None)
    assert isinstance(progress_display(), LineProgress)
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", ZMQInteractiveShell)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    assert isinstance(progress_display(), LineProgress)
    assert watcher("auto") is None
