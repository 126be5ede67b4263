"""Arguments that several verbs take, in the same words."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, validators

Folder = Annotated[Path, Parameter(name="MODEL")]
Quiet = Annotated[bool, Parameter(name=["--quiet", "-q"], negative="")]
Json = Annotated[bool, Parameter(name="--json", negative="")]
Output = Annotated[Path | None, Parameter(name=["--output", "-o"])]
Beam = Annotated[int, Parameter(validator=validators.Number(gte=1))]
