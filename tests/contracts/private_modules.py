"""A contract of import-linter: a module or folder whose name begins with `_` is imported from its own folder only.

`lint-imports` (`make lint`) loads it by the name in pyproject.toml, `[tool.importlinter] contract_types`.
"""

from __future__ import annotations

from importlinter import Contract, ContractCheck, output


class PrivateModules(Contract):
    """Private modules stay within the folder they lie in."""

    def check(self, graph, verbose):
        breaches = []
        for module in sorted(graph.modules):
            home = self._home(module)
            if home is None or not module.startswith("secateur."):
                continue
            for importer in sorted(graph.find_modules_that_directly_import(module)):
                if importer != home and not self._within(importer, home):
                    breaches.append((importer, module))
        return ContractCheck(kept=not breaches, metadata={"breaches": breaches})

    def render_broken_contract(self, check):
        for importer, module in check.metadata["breaches"]:
            output.print_error(f"{importer} imports {module}, which is private to its folder")

    @staticmethod
    def _home(module: str) -> str | None:
        """The folder of the outermost private part of a module's name, or None if no part is private."""
        parts = module.split(".")
        for index, part in enumerate(parts):
            if part.startswith("_") and not part.startswith("__"):
                return ".".join(parts[:index])
        return None

    @staticmethod
    def _within(importer: str, home: str) -> bool:
        """True if the importer lies directly in the folder, or in a private folder of it."""
        if not importer.startswith(f"{home}."):
            return False
        rest = importer.removeprefix(f"{home}.").split(".")
        return len(rest) == 1 or rest[0].startswith("_")
