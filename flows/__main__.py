"""``python -m flows run|submit|deploy|ui``: the verbs of ``reca`` that need Prefect."""

import argparse
import sys
from collections.abc import Sequence

from reca.config import ConfigError
from reca.runtime.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; a user error is one message and status 2."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(words)
    verb = words[0]
    try:
        return _call(verb, options)
    except (ConfigError, UserError) as error:
        print(f"reca {verb}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nreca {verb}: interrupted; the next run continues where this one stopped", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser("reca")
    verbs = top.add_subparsers(dest="verb", required=True)
    example = "changes to the configuration, such as train.max_steps=40 or data=folder data.path=/photos"
    run = verbs.add_parser(
        "run", description="Align, measure and register a model; stages that are up to date are not run again."
    )
    run.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=example)
    run.add_argument("--isolated", action="store_true", help="run the last commit, in a separate worktree")
    submit = verbs.add_parser("submit", description="Check the overrides, then submit the run to a worker.")
    submit.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=example)
    submit.add_argument("--deployment", default="on-demand", help="one of prefect.yaml's; default: %(default)s")
    deploy = verbs.add_parser(
        "deploy", description="Create work pools, limits, the heartbeat automation and the deployments."
    )
    deploy.add_argument("--gpus", type=int, help="slots of the limit `gpu`; default: the GPUs of this machine, or 1")
    ui = verbs.add_parser("ui", description="Serve the Prefect and MLflow pages of this project on loopback.")
    ui.add_argument("--prefect-port", type=int, default=4200)
    ui.add_argument("--mlflow-port", type=int, default=5000)
    return top


def _call(verb: str, options: argparse.Namespace) -> int:
    if verb == "run":
        from flows.run import run

        status = run(options.overrides, options.isolated)
    elif verb == "submit":
        from flows.deploy import submit

        status = submit(options.overrides, options.deployment)
    elif verb == "deploy":
        from flows.deploy import deploy

        status = deploy(options.gpus)
    else:
        from flows.ui import serve

        status = serve(options.prefect_port, options.mlflow_port)
    return status


if __name__ == "__main__":
    sys.exit(main())
