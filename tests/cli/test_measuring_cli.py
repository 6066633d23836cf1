"""The command line of measure and scan: what a shrunk model gained and why, and what a scan can be asked for."""

from __future__ import annotations

import importlib
import json


def test_measure_tells_what_a_shrunk_model_gained_and_why(secateur, monkeypatch):
    from secateur.core.measurement import Measurement, Measurements

    module = importlib.import_module("secateur.metrics.latency")

    class Told:
        def summary(self):
            return "because of widths"

        def __str__(self):
            return "layer by layer\nbecause of widths"

    slow = Measurements(
        [Measurement("latency", 1.0), Measurement("latency", 1.0), Measurement("speedup", 1.1, "x")]
    )
    monkeypatch.setattr(module, "compare", lambda *a, **k: slow)
    monkeypatch.setattr("secateur.metrics.why", lambda *a, **k: Told())
    code, out, _ = secateur("shrink", "lenet-300-100", "--out", "small.sct", "--repetitions", "1")
    assert code == 0
    assert "because of widths" in out
    words = ["measure", "lenet-300-100", "small.sct", "--what", "latency", "--repetitions", "1"]
    code, out, _ = secateur(*words)
    assert code == 0
    assert "against the dense model: " in out
    assert "x fewer multiply-accumulates, 1.1 x as fast\nlayer by layer" in out
    assert "against" not in secateur(*words, "--no-why")[1]
    assert "against" not in secateur(*words[:2], *words[3:])[1]  # the dense model itself
    code, out, error = secateur(*words[:-2], "--json", "--trials", "1")  # its name before
    assert "--trials is called --repetitions now" in error
    assert "1 repetitions" in out
    found = json.loads(out)
    assert found["against_dense"]["faster"] == 1.1
    assert found["against_dense"]["fewer"] > 1.1
    fast = Measurements(
        [Measurement("latency", 1.0), Measurement("latency", 1.0), Measurement("speedup", 9.0, "x")]
    )
    monkeypatch.setattr(module, "compare", lambda *a, **k: fast)
    assert "time fell as the count did" in secateur(*words)[1]


def test_a_scan_can_estimate_and_spend_bytes(secateur):
    words = ["scan", "lenet-300-100", "--subset", "40", "--levels", "0.5", "--estimate", "taylor"]
    code, out, _ = secateur(*words, "--keep", "0.7", "--cost", "size", "--plain")
    assert code == 0
    assert "of what goes (first order, in units of the loss)" in out
    assert "size 0." in out
    assert secateur(*words, "--keep", "0.7", "--cost", "latency")[0] == 2


def test_a_scan_says_whose_option_the_address_is(secateur):
    code, _, err = secateur("scan", "lenet-300-100", "--address", "auto")
    assert code == 2
    assert "--address auto: belongs to --engine ray; on one machine layers are distributed by --jobs" in err


def test_accuracy_says_on_which_images_and_how_they_were_normalised(secateur):
    code, out, _ = secateur("measure", "lenet-300-100", "--data", "digits", "--what", "accuracy")
    assert code == 0
    (line,) = (line for line in out.splitlines() if line.startswith("accuracy "))
    assert "accuracy on the 360 test images of digits (1x28x28)" in line
    assert "of the pixels in 0..1 less its mean (0." in line
    assert "as returned by evaluate" not in out


def test_a_run_defines_the_columns_of_its_table(secateur, tmp_path):
    (tmp_path / "r.toml").write_text('[model]\nname = "fc"\n[[step]]\nkind = "pack"\n')
    where = ["--store", str(tmp_path / "runs")]
    code, out, _ = secateur("run", str(tmp_path / "r.toml"), *where)
    assert code == 0
    assert "\n  file_ratio: original_bytes over file_bytes\n" in out
    assert "\n  file_ratio: original_bytes over file_bytes\n" in secateur("show", "last", *where)[1]


def test_no_repetitions_by_the_old_name_are_refused_before_any_work(secateur, tmp_path):
    for words in (["shrink", "--out", "small.sct"], ["measure"], ["export", "--out", "model.onnx"]):
        code, _, error = secateur(words[0], "lenet-300-100", *words[1:], "--trials", "0")
        assert code == 2
        assert "--trials" in error
        assert "greater than or equal to 1" in error
        assert not list(tmp_path.iterdir())
    assert "--trials'" not in secateur("scan", "lenet-300-100", "--trials", "0", "--levels", "none")[2]
