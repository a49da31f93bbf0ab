"""Where the `plungepool` command begins."""

from plungepool_toolkit import interrupts


def main() -> None:
    """Run the command line; the process's exit code is the command's, 130 after Ctrl-C."""
    interrupts.leave_at_once()
    from plungepool_toolkit.command import main as run  # most of a second, in which somebody may think better of it

    try:
        run()
    finally:
        interrupts.leave_at_once()


if __name__ == "__main__":
    main()
