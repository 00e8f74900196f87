"""The program, also as `python -m hwsim`: light, so that an interrupt finds it running while the rest is imported."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; interrupted before that is loaded, end as it would."""
    try:
        from hwsim.cli import main as run
    except KeyboardInterrupt:
        print("hwsim: interrupted", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
