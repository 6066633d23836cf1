"""Pages of the documentation site that are made when it is built: the reference, and files from the repository's root.

A hook of MkDocs. The reference comes from what the package itself says (docstrings, the command line's own help, the
recipe schema, the registries), so it cannot be older than the code. Links from pages to files outside docs/ are turned
to the pages made from those files.
"""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))
import examples
import notebooks
from results import results_page

ROOT = Path(__file__).resolve().parents[2]
FROM_ROOT = {
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
}
TOPICS = {  # the rooms of the package -> the heading their public names stand under
    "pruning": "Prune and hold",
    "compensation": "Compensate",
    "structure": "Shrink",
    "sensitivity": "Scan and allocate",
    "quantize": "Share weights",
    "search": "Search",
    "container": "Files",
    "adapters": "Export",
    "metrics": "Measure",
    "streaming": "Checkpoints larger than memory",
    "lab": "Recipes and stores",
    "core": "Values",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here."""
    made = {
        "reference/python.md": python_page(),
        "reference/commands.md": commands_page(),
        "reference/recipes.md": recipes_page(),
        "reference/names.md": names_page(),
        "reference/errors.md": errors_page(),
        "decisions/README.md": decisions_page(),
        "results.md": results_page(),
    }
    for path in sorted(notebooks.FOLDER.glob("*.ipynb")):
        text, pictures = notebooks.page(json.loads(path.read_text(encoding="utf-8")), path.stem)
        made[f"notebooks/{path.stem}.md"] = text
        for name, content in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    for source, page in FROM_ROOT.items():
        made[page] = (ROOT / source).read_text(encoding="utf-8").replace("](docs/", "](")
    for page, text in made.items():
        old = files.get_file_from_path(page)
        if old is not None:
            files.remove(old)
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, *, page: object, config: MkDocsConfig, files: Files) -> str:
    """Turn links to files outside docs/ to the pages made from them."""
    up = "../" * str(getattr(page, "file").src_uri).count("/")  # noqa: B009 - the page's class is MkDocs' own
    if not str(getattr(page, "file").src_uri).startswith("notebooks/"):  # noqa: B009 - likewise
        markdown = re.sub(r"\]\((notebooks/[\w-]+)\.ipynb\)", r"](\1.md)", markdown)
    for source, target in FROM_ROOT.items():
        markdown = re.sub(rf"\]\((?:\.\./)*{re.escape(source)}", f"]({up}{target}", markdown)
    markdown = re.sub(r"\]\((?:\.\./)+recipes/([\w/-]+)\.toml\)", rf"]({up}reference/recipes.md)", markdown)
    return re.sub(r"\]\((?:\.\./)*README\.md\)", f"]({up}index.md)", markdown)


def python_page() -> str:
    """Every public name, by topic, with its example."""
    import secateur

    start, *sections = examples.sections(examples.FILE.read_text(encoding="utf-8"))
    begin = ["```pycon", start.code.rstrip(), "```", ""]
    lines = [
        "# Python",
        "",
        "`import secateur as sc`; every name here is `sc.NAME`. Every example is executed by the tests.",
    ]
    lines += ["Those under a heading *Example* begin after these lines:", "", *begin]
    held = {name: getattr(secateur, name) for name in secateur.__all__}
    for room, title in TOPICS.items():
        lines += [f"## {title}", ""]
        here = [name for name, value in held.items() if _room(value) == room]
        for name in sorted(here, key=lambda name: (inspect.isclass(held[name]), name)):
            lines += [f"::: secateur.{name}", "    options:", "      heading_level: 3", ""]
            for section in sections:
                if name in section.names:
                    lines += [
                        "**Example.** " + section.text,
                        "",
                        "```pycon",
                        section.code.rstrip(),
                        "```",
                        "",
                    ]
    lines += [
        "## Packages",
        "",
        "Registries, base classes and what else those who extend secateur import.",
        "",
    ]
    for name in (name for name, value in held.items() if inspect.ismodule(value)):
        lines += [
            f"::: secateur.{name}",
            "    options:",
            "      heading_level: 3",
            "      members: false",
            "",
        ]
    return "\n".join(lines)


def _room(value: object) -> str:
    """The room of the package that a public name is defined in; nothing for a module."""
    return str(getattr(value, "__module__", "")).removeprefix("secateur.").split(".")[0]


def commands_page() -> str:
    """Every command with its own help."""
    from secateur.cli.app import app

    group = typer.main.get_command(app)
    lines = [
        "# Command line",
        "",
        "[Exit codes](../guide/cli.md) are the same for all.",
        "",
    ]
    for name in sorted(group.commands):  # type: ignore[attr-defined]
        command = [sys.executable, "-m", "secateur", name, "--help"]
        environment = {"PYTHONPATH": str(ROOT / "src"), "COLUMNS": "100", "PATH": "", "LANG": "C.UTF-8"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        lines += [f"## {name}", "", "```text", done.stdout.strip(), "```", ""]
    return "\n".join(lines)


def recipes_page() -> str:
    """Every table and step of a recipe with its options, and the recipes of this repository."""
    from secateur.lab import recipe

    schema = recipe.schema()
    lines = [
        "# Recipes",
        "",
        "How they are used: [the guide](../guide/recipes.md). `secateur schema` prints this as JSON Schema.",
        "",
    ]
    properties = schema["properties"]
    for table in ("data", "model", "teacher", "lab"):
        lines += [f"## [{table}]", "", *_options(properties[table]), ""]
    for step in properties["step"]["items"]["oneOf"]:
        kind = step["properties"]["kind"]["const"]
        lines += [
            f"## step {kind}",
            "",
            inspect.cleandoc(step.get("description", "")).split("\n\n")[0],
            "",
            *_options(step),
            "",
        ]
    lines += ["## Recipes of this repository", ""]
    for path in sorted((ROOT / "recipes").rglob("*.toml")):
        name = path.relative_to(ROOT).as_posix()
        lines += [f'??? note "{name}"', "", "    ```toml"]
        lines += [f"    {line}".rstrip() for line in path.read_text(encoding="utf-8").splitlines()]
        lines += ["    ```", ""]
    return "\n".join(lines)


def _options(table: dict[str, object]) -> Iterator[str]:
    """One row for each option of a table or step: name, kind, default, meaning."""
    properties = table.get("properties", {})
    assert isinstance(properties, dict)
    rows = [(name, one) for name, one in properties.items() if name != "kind"]
    if not rows:
        yield "No options."
        return
    yield from ("| option | kind | default | what it is |", "|---|---|---|---|")
    for name, one in rows:
        kinds = [one.get("type") or one.get("const")] + [each.get("type") for each in one.get("anyOf", [])]
        kind = " or ".join(str(each) for each in kinds if each and each != "null") or "table"
        default = f"`{json.dumps(one['default'])}`" if one.get("default") is not None else ""
        meaning = " ".join(str(one.get("description", "")).split()).replace("|", "\\|")
        yield f"| `{name}` | {kind} | {default} | {meaning} |"


def names_page() -> str:
    """What a registry's word stands for: criteria, granularities, budgets and the rest."""
    from secateur import allocation, budget, criteria, granularity, quantize, sparsify

    lines = ["# Names", "", "Words that recipes, the command line and the Python verbs take.", ""]
    registries = {
        "Criteria": criteria.registry,
        "Granularities": granularity.registry,
        "Budgets": budget.registry,
        "Methods of weight sharing": quantize.registry,
        "Methods of sparse training": sparsify.registry,
        "Methods of allocation": allocation.registry,
    }
    for title, registry in registries.items():
        lines += [f"## {title}", "", "| word | what it is |", "|---|---|"]
        for name in registry.names():
            text = inspect.getdoc(registry.get(name)) or ""
            first = " ".join(text.split("\n\n")[0].split()).replace("|", "\\|")
            lines.append(f"| `{name}` | {first} |")
        lines.append("")
    return "\n".join(lines)


def errors_page() -> str:
    """Every error: its exit code, what it means, and its cure, as its docstring has them."""
    from secateur import errors

    lines = [
        "# Errors and their cures",
        "",
        "Every message names the tensor, layer or file, what was expected, what was found, and the next step. All are",
        "`secateur.errors.SecateurError`, so `except sc.errors.SecateurError` catches whatever secateur refuses. A",
        "command leaves with the exit code given here, or with 2 where a file, folder or store that was named is not",
        "there, and a verb that fails leaves model and files as they were.",
        "",
    ]
    for name in errors.__all__:
        found = getattr(errors, name)
        if isinstance(found, type):
            meaning, _, cure = (inspect.getdoc(found) or "").partition("\n\n")
            base = found.__mro__[1].__name__
            kind = f"a kind of `{base}`, " if base.endswith("Error") else ""
            lines += [
                f"## {name}",
                "",
                f"*{kind}exit code {found.exit_code}.* {' '.join(meaning.split())}",
                "",
                cure,
                "",
            ]
    return "\n".join(lines)


def decisions_page() -> str:
    """The decisions' own first page, with a list of them."""
    folder = ROOT / "docs" / "decisions"
    lines = [(folder / "README.md").read_text(encoding="utf-8"), ""]
    for path in sorted(folder.glob("0*.md")):
        title = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        lines.append(f"- [{title}]({path.name})")
    return "\n".join([*lines, ""])
