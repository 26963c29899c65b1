"""A working folder full of modules that nothing of ours may import."""

from __future__ import annotations

from pathlib import Path

# Ours, what we stand on, what stands in every data engineer's folder, and a module of Python's own.
MODULES = ("tubelet", "numpy", "torch", "av", "pyarrow", "ray", "mlflow", "pipeline", "json", "queue")
PACKAGES = ("tubelet_jobs", "jobs", "support")


class HostileFolder:
    """Modules that write their name to a file when they are imported, and raise.

    Args:
        path: the folder to work in; made here.
        without: a package that is not there.
    """

    def __init__(self, path: Path, *, without: str = "") -> None:
        self.path = path
        self._marker = path / "imported.txt"
        text = f"open({str(self._marker)!r}, 'a').write(__name__ + '\\n')\nraise ImportError(__name__)\n"
        path.mkdir(parents=True, exist_ok=True)
        for name in MODULES:
            (path / f"{name}.py").write_text(text, "utf-8")
        for name in set(PACKAGES) - {without}:
            (path / name).mkdir()
            for file in ("__init__", "__main__"):
                (path / name / f"{file}.py").write_text(text, "utf-8")

    @property
    def imported(self) -> list[str]:
        """Names of the modules that somebody imported."""
        return self._marker.read_text("utf-8").split() if self._marker.exists() else []
