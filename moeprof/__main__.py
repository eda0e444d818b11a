"""``python -m moeprof`` is the ``moeprof`` command."""

from moeprof.cli.main import entry_point

if __name__ == "__main__":
    entry_point()
