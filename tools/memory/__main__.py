"""``python -m tools.memory KEY=VALUE …``: predict memory, time and cost of a run (started by ``reca doctor``)."""

import argparse
import sys

from reca.config import ConfigError
from reca.runtime import workspace
from reca.runtime.errors import UserError
from tools.memory.command import predict


def main() -> int:
    """Print the forecast; return 0, 1 if the run does not fit, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="reca doctor", description=__doc__)
    parser.add_argument("overrides", nargs="+", metavar="KEY=VALUE")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        return predict(options.overrides, workspace.project_root(), options.json)
    except (ConfigError, UserError) as error:
        print(f"reca doctor: {error}", file=sys.stderr)
        return 2


sys.exit(main())
