"""Write the CustomResourceDefinitions, the chart's copy of them and the reference page from the models.

Run as `python -m flyball_api.crdgen`; `--check` writes nothing and fails when a file is not what would be written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from flyball_api.crddocs import reference_page
from flyball_api.crdschema import CrdError, JsonObject, structural_schema
from flyball_api.energypolicy import EnergyPolicy
from flyball_api.names import GROUP, VERSION
from flyball_api.nodeenergyplan import NodeEnergyPlan

MEND = "run `make crds` and commit what it writes"
HEADER = f"# Generated from the models in crds/src/flyball_api: do not edit, {MEND}.\n"

CRD_DIRECTORY = Path("crds")
CHART_DIRECTORY = Path("helm/flyball/templates/crds")
REFERENCE_PAGE = Path("docs/energypolicy.md")


RESOURCES: Final = (EnergyPolicy, NodeEnergyPlan)


class _Dumper(yaml.SafeDumper):
    """Writes equal parts out: a reader of a CRD does not look for YAML anchors."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - PyYAML's signature
        """No part is written as an anchor's alias."""
        return True


def custom_resource_definition(model: type[EnergyPolicy | NodeEnergyPlan]) -> JsonObject:
    """The CRD of one model.

    Raises:
        CrdError: the model cannot be told as structural schema.
    """
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{model.PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "categories": ["flyball"],
                "kind": model.KIND,
                "listKind": f"{model.KIND}List",
                "plural": model.PLURAL,
                "shortNames": list(model.SHORT_NAMES),
                "singular": model.KIND.lower(),
            },
            "scope": "Cluster",
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [_column(*column) for column in model.PRINTER_COLUMNS],
                    "schema": {"openAPIV3Schema": structural_schema(model)},
                }
            ],
        },
    }


def _column(name: str, kind: str, json_path: str, priority: int) -> JsonObject:
    column: JsonObject = {"name": name, "type": kind, "jsonPath": json_path}
    return column | {"priority": priority} if priority else column


def to_yaml(document: Mapping[str, Any]) -> str:
    """Deterministic YAML in the order of the document."""
    return yaml.dump(dict(document), Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)


def chart_template(crd: JsonObject) -> str:
    """The CRD as a template of the chart.

    A template, because Helm never upgrades what is in a chart's `crds/` folder; kept on uninstall, because deleting
    a CRD deletes every policy with it.
    """
    metadata = {**crd["metadata"], "annotations": {"helm.sh/resource-policy": "keep"}}
    text = to_yaml({**crd, "metadata": metadata})
    if "{{" in text:
        raise CrdError(f"{crd['metadata']['name']} holds '{{{{', which Helm would run: word it without")
    labels = '  labels:\n    {{- include "flyball.labels" . | nindent 4 }}\n'
    head, name, rest = text.partition(f"  name: {metadata['name']}\n")
    return f"{HEADER}{{{{- if .Values.crds.install }}}}\n{head}{name}{labels}{rest}{{{{- end }}}}\n"


def generated_files(root: Path) -> dict[Path, str]:
    """Every generated file, as its path below `root` and what it should hold.

    Args:
        root: the checkout; the hand-written part of the reference page is read from it.
    """
    files: dict[Path, str] = {}
    definitions = {model.KIND: custom_resource_definition(model) for model in RESOURCES}
    for crd in definitions.values():
        name = f"{crd['spec']['names']['plural']}.yaml"
        files[CRD_DIRECTORY / name] = HEADER + to_yaml(crd)
        files[CHART_DIRECTORY / name] = chart_template(crd)
    page = (root / REFERENCE_PAGE).read_text()
    files[REFERENCE_PAGE] = reference_page(page, definitions[EnergyPolicy.KIND])
    return files


def drifted(root: Path) -> list[Path]:
    """The generated files below `root` that are missing or not as they would be written now."""
    return [
        path
        for path, text in generated_files(root).items()
        if not (root / path).is_file() or (root / path).read_text() != text
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m flyball_api.crdgen", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a file would change")
    parser.add_argument("--root", type=Path, default=Path(), help="the checkout (default: here)")
    options = parser.parse_args(arguments)
    root: Path = options.root
    if not (root / REFERENCE_PAGE).is_file():
        parser.error(f"{root / REFERENCE_PAGE} is not there: run in the root of a checkout, or name it with --root")
    changed = drifted(root)
    if options.check:
        for path in changed:
            sys.stderr.write(f"{path} is not what the models say: {MEND}\n")
        return 1 if changed else 0
    for path, text in generated_files(root).items():
        if path in changed:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
            sys.stdout.write(f"wrote {path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
