"""What is to be predicted: one case from options, or many from the rows of a CSV file."""

from __future__ import annotations

import csv
import difflib
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from flyball_sim.gpu.types import GPU_TYPES, GpuType, UnknownGpuTypeError
from flyball_sim.latency.cards import UnknownEngineError, UnknownModelError
from flyball_sim.latency.catalogue import Catalogue
from flyball_sim.latency.predict import CaseError, Prediction, predict_closed_loop
from flyball_sim.latency.steps import step_model

_SHORT_NAMES: Mapping[str, str] = {
    "h100": "H100-SXM5",
    "h100sxm": "H100-SXM5",
    "h10080gbhbm3": "H100-SXM5",
    "h100sxm80gb": "H100-SXM5",
    "h100sxm580gb": "H100-SXM5",
    "h10080gb": "H100-SXM5",
    "h200": "H200-SXM",
    "h200sxm5": "H200-SXM",
    "h200sxm141gb": "H200-SXM",
    "a100": "A100-SXM4-80GB",
    "a100sxm": "A100-SXM4-80GB",
    "a100sxm4": "A100-SXM4-80GB",
    "a10080gb": "A100-SXM4-80GB",
    "a100sxm80gb": "A100-SXM4-80GB",
    "a10040gb": "A100-SXM4-40GB",
    "a100sxm40gb": "A100-SXM4-40GB",
    "a6000": "RTX-A6000",
    "v100": "V100-SXM2",
    "v100sxm": "V100-SXM2",
    "v100sxm216gb": "V100-SXM2",
}


def _gpu_key(name: str) -> str:
    return re.sub(r"nvidia|tesla|[^a-z0-9]", "", name.lower())


def gpu_named(name: str) -> GpuType:
    """The GPU type called `name`; case, separators, maker and form factor may be left out.

    Raises:
        UnknownGpuTypeError: there is none; the message names the nearest ones.
    """
    known = {_gpu_key(kind): kind for kind in GPU_TYPES}
    known |= {_gpu_key(kind.product_name): kind.name for kind in GPU_TYPES.values()} | dict(_SHORT_NAMES)
    found = known.get(_gpu_key(name), "")
    if found not in GPU_TYPES:
        near = difflib.get_close_matches(_gpu_key(name), known, n=3, cutoff=0.0)
        nearest = ", ".join(dict.fromkeys(repr(known[key]) for key in near))
        raise UnknownGpuTypeError(f"GPU {name!r} is unknown: did you mean {nearest}? Known: {', '.join(GPU_TYPES)}")
    return GPU_TYPES[found]


@dataclass(frozen=True, slots=True)
class Case:
    """One row: an engine, a load and how its cards are held. `dtype` None: fp8 if the model's name says so."""

    gpu: str
    model: str
    isl: int
    osl: int
    concurrency: int
    tp: int = 1
    dtype: str | None = None
    sm_mhz: int | None = None
    cap_watts: float | None = None
    max_num_batched_tokens: int | None = None
    max_num_seqs: int | None = None

    def predict(self, catalogue: Catalogue) -> Prediction:
        """The prediction.

        Raises:
            CaseError: a value is out of its range or unknown; it names the field.
        """
        named_fp8 = re.search(r"(?<![a-z0-9])fp8(?![a-z0-9])", self.model.lower())
        dtype = self.dtype or ("fp8" if named_fp8 else "bf16")
        try:
            model = step_model(gpu_named(self.gpu), self.model, self.tp, dtype=dtype, catalogue=catalogue)
        except UnknownGpuTypeError as error:
            raise CaseError("gpu", str(error)) from None
        except UnknownModelError as error:
            raise CaseError("model", str(error)) from None
        except UnknownEngineError as error:
            raise CaseError("dtype" if "is unknown" in str(error) else "tp", str(error)) from None
        return predict_closed_loop(
            model,
            isl=self.isl,
            osl=self.osl,
            concurrency=self.concurrency,
            sm_mhz=self.sm_mhz,
            cap_watts=self.cap_watts,
            max_num_batched_tokens=self.max_num_batched_tokens,
            max_num_seqs=self.max_num_seqs,
        )


NUMBERS: Mapping[str, tuple[Callable[[str], int | float], str]] = {
    "tp": (int, "the GPUs of the engine, 1 or more"),
    "isl": (int, "prompt tokens, 1 or more"),
    "osl": (int, "output tokens, 2 or more"),
    "concurrency": (int, "requests at a time, 1 or more"),
    "sm_mhz": (int, "an SM clock in MHz"),
    "cap_watts": (float, "a power cap in watts"),
    "max_num_batched_tokens": (int, "tokens in a step, 1 or more"),
    "max_num_seqs": (int, "sequences in a step, 1 or more"),
}
REQUIRED = ("gpu", "model", "isl", "osl", "concurrency")
COLUMNS = ("gpu", "model", "dtype", *NUMBERS)


def _number(field: str, text: str) -> int | float:
    convert, what = NUMBERS[field]
    try:
        value = convert(text)
    except ValueError:
        raise CaseError(field, f"is {text!r}: give {what}") from None
    if not math.isfinite(value) or value < 1:
        raise CaseError(field, f"is {text}: give {what}")
    return value


def read_case(values: Mapping[str, str]) -> Case:
    """The case of `values` by column name; empty ones count as not given.

    Raises:
        CaseError: one that is needed is missing, or is not what it should be.
    """
    given = {name: text.strip() for name, text in values.items() if text and text.strip()}
    for name in REQUIRED:
        if name not in given:
            raise CaseError(name, "is missing: give one")
    names = {name: given[name] for name in ("gpu", "model", "dtype") if name in given}
    numbers = {name: _number(name, given[name]) for name in NUMBERS if name in given}
    return Case(**names, **numbers)  # type: ignore[arg-type]


class CasesError(ValueError):
    """A file of cases that cannot be used; the message names the line, the field and the mend."""


def read_cases(text: str) -> list[tuple[int, Case]]:
    """The cases of a CSV file's text, each with its line.

    Raises:
        CasesError: a column is missing or unknown, or a row is not a case.
    """
    reader = csv.DictReader(io.StringIO(text.removeprefix("\ufeff")), skipinitialspace=True, restval="")
    header = [name.strip() for name in reader.fieldnames or ()]
    reader.fieldnames = header
    missing = [name for name in REQUIRED if name not in header]
    if missing:
        raise CasesError(f"line 1: no column {', '.join(missing)}: the columns are {','.join(COLUMNS)}")
    unknown = [name for name in header if name not in COLUMNS]
    if unknown:
        raise CasesError(f"line 1: column {unknown[0]!r} is unknown: the columns are {','.join(COLUMNS)}")
    cases = []
    for row in reader:
        line = reader.line_num
        if None in row:
            raise CasesError(f"line {line}: has more values than the header has columns: quote commas or drop some")
        if not any(row.values()):
            continue
        try:
            cases.append((line, read_case(row)))
        except CaseError as error:
            raise CasesError(f"line {line}: {error}") from None
    if not cases:
        raise CasesError("line 2: there is no case: give one row or more under the header")
    return cases


def predict_cases(cases: Sequence[tuple[int, Case]], catalogue: Catalogue) -> list[Prediction]:
    """Every prediction, in order.

    Raises:
        CasesError: one cannot be made; the message names its line and field.
    """
    predictions = []
    for line, case in cases:
        try:
            predictions.append(case.predict(catalogue))
        except CaseError as error:
            raise CasesError(f"line {line}: {error}") from None
    return predictions
