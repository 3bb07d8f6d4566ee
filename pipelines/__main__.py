"""One command for all verbs: ``omnimamba VERB ...`` or ``python -m pipelines VERB ...``."""

import runpy
import sys

from pipelines.run.ending import UNUSABLE
from pipelines.run.verbs import no_such_verb, verbs

USAGE = "omnimamba VERB ...    (the same as python -m pipelines.VERB ...)"


def main() -> None:
    """Run the verb that the command line names, or list all of them. Only that verb is imported."""
    word, *rest = sys.argv[1:] or ["--help"]
    if word in ("-h", "--help"):
        print(USAGE, *(f"  {name:<11}{about}" for name, about in verbs().items()), sep="\n")
        print("\nomnimamba VERB --help says what it takes, with examples")
        return
    if word not in verbs():
        print(no_such_verb(word), file=sys.stderr)
        sys.exit(UNUSABLE)
    sys.argv = [word, *rest]
    # as the main module, so that processes that it starts find it by its own name
    runpy.run_module(f"pipelines.{word}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
