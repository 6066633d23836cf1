"""A plug-in folder is its registry: file names are words, classes their CamelCase, nothing else is edited."""

from __future__ import annotations

import subprocess
import sys

import pytest

from secateur import budget, criteria
from secateur.errors import OptionError, UnknownNameError
from secateur.registry import Registry, camel


@pytest.fixture
def folder(tmp_path, monkeypatch):
    package = tmp_path / "plugs_for_test"
    package.mkdir()
    (package / "__init__.py").write_text("class Base: pass\n")
    (package / "two_words.py").write_text(
        "from . import Base\nclass TwoWords(Base):\n    def __init__(self, size=1): self.size = size\n"
    )
    (package / "_helper.py").write_text("raise RuntimeError('must not be imported')\n")
    (package / "broken.py").write_text("raise RuntimeError('only when asked for')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield Registry(
        "plugs_for_test",
        [str(package)],
        "plug",
        base="plugs_for_test:Base",
        aliases={"pair": "two_words"},
        deprecated={"couple": "two_words"},
        number="two_words",
    )
    for name in [name for name in sys.modules if name.startswith("plugs_for_test")]:
        del sys.modules[name]


def test_names_come_from_the_files_and_import_nothing(folder):
    assert folder.names() == ["broken", "two_words"]
    assert "plugs_for_test.broken" not in sys.modules


def test_a_plug_in_from_a_word_an_alias_a_number_a_class_or_a_value(folder):
    kind = folder.get("two_words")
    assert folder.make("pair", size=3).size == 3
    assert folder.make(7).size == 7
    assert folder.make(kind, size=2).size == 2
    value = kind()
    assert folder.make(value) is value
    assert folder.attribute("TwoWords") is kind


def test_a_file_added_is_a_word_added(folder):
    import pathlib

    (pathlib.Path(folder._path[0]) / "third.py").write_text("from . import Base\nclass Third(Base): pass\n")
    assert "third" in folder.names()
    assert type(folder.make("third")).__name__ == "Third"


def test_unknown_words_are_told_the_nearest(folder):
    with pytest.raises(UnknownNameError) as error:
        folder.get("two_word")
    assert str(error.value) == "unknown plug 'two_word': did you mean 'two_words'?"
    with pytest.raises(UnknownNameError, match=r"unknown plug 'zzz': known: 'broken', 'pair', 'two_words'"):
        folder.get("zzz")
    with pytest.raises(AttributeError, match="has no attribute 'TwoWord': did you mean 'TwoWords'"):
        folder.attribute("TwoWord")


@pytest.mark.parametrize("value", [True, None, object()])
def test_a_value_of_another_kind(folder, value):
    with pytest.raises(OptionError, match=r"expected a plug \(a name such as 'broken', or a value\), got "):
        folder.make(value)


def test_a_word_of_an_earlier_version_works_and_warns(folder):
    with pytest.warns(DeprecationWarning, match=r"the plug 'couple' is called 'two_words' now"):
        assert folder.get("couple").__name__ == "TwoWords"
    assert "couple" not in folder.names()


def test_old_names_of_the_public_surface_work_and_warn():
    import secateur as sc
    from secateur.lab import steps

    with pytest.warns(DeprecationWarning, match="'thrift' is called 'rate_distortion' now"):
        assert criteria.registry.make("thrift") == criteria.RateDistortion()
    with pytest.warns(DeprecationWarning, match="'thrift' is called 'rate_distortion' now"):
        assert criteria.Thrift is criteria.RateDistortion
    with pytest.warns(DeprecationWarning, match="'tidy' is called 'zero_dead_neurons' now"):
        assert steps.registry.get("tidy").__name__ == "ZeroDeadNeuronsStep"
    with pytest.warns(DeprecationWarning, match=r"secateur\.tidy is called secateur\.zero_dead_neurons now"):
        assert sc.tidy is sc.zero_dead_neurons


def test_a_number_where_none_is_meant():
    with pytest.raises(OptionError, match=r"expected a criterion .* got 0\.5 of type float"):
        criteria.registry.make(0.5)


def test_every_registered_name_loads_and_is_its_camel_case():
    for package, base in ((criteria, "Criterion"), (budget, "Budget")):
        for word in package.registry.names():
            kind = package.registry.get(word)
            assert kind.__name__ == camel(word)
            assert issubclass(kind, getattr(package, base))
            assert kind.__doc__, word


def test_listing_names_imports_no_torch():
    code = (
        "import sys\n"
        "from secateur.registry import Registry\n"
        "import secateur, pathlib\n"
        "folder = str(pathlib.Path(secateur.__file__).parent / 'criteria')\n"
        "assert 'magnitude' in Registry('secateur.criteria', [folder], 'criterion').names()\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
