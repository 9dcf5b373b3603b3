"""``python -m tools.tiny_bases model=…``: make the base weights of a tiny preset again."""

import sys

from reca.config import ConfigError
from reca.runtime.errors import UserError
from tools.tiny_bases import main

try:
    sys.exit(main(sys.argv[1:]))
except (ConfigError, UserError) as error:
    print(f"tools.tiny_bases: {error}", file=sys.stderr)
    sys.exit(2)
