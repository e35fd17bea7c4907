"""Missing packages: help and doctor work as far as possible, and one line says what to install."""

from __future__ import annotations

import subprocess
import sys

import pytest

from forgetting.cli import missing

CODE = "import sys\nfor name in {gone!r}: sys.modules[name] = None\nfrom forgetting.cli import main\nmain()\n"


def command(gone: list[str], *arguments: str) -> tuple[int, str, str]:
    """The command in a process where some packages cannot be imported."""
    line = [sys.executable, "-c", CODE.format(gone=gone), *arguments]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("module", missing.needed())
def test_every_required_package_is_looked_for_under_its_modules_name(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert missing.note() == ""
    monkeypatch.setitem(sys.modules, module, None)
    requirement = missing.needed()[module]
    assert missing.note() == f"note: not installed: {module}; run: pip install '{requirement}'\n"


@pytest.mark.full
def test_help_works_and_names_what_is_missing() -> None:
    code, out, error = command(["torch", "peft"], "--help")
    assert (code, "measure" in out) == (0, True)
    assert error == f"note: not installed: peft, torch; run: {missing.install('peft', 'torch')}\n"
    assert command([], "--help")[2] == ""


@pytest.mark.full
@pytest.mark.parametrize("module", ["typer", "yaml"])
def test_a_missing_package_of_the_command_itself_gives_a_one_line_error(module: str) -> None:
    code, out, error = command([module], "--help")
    assert (code, out) == (1, "")
    assert error == (f"error: {module} is not installed, and this command needs it; run: {missing.install(module)}\n")


@pytest.mark.full
def test_the_doctor_works_without_the_packages_of_the_command_itself() -> None:
    code, out, error = command(["typer", "torch", "pydantic", "rich"], "doctor")
    assert (code, error) == (1, "")
    assert "BROKEN packages" in out
    assert "typer has no module 'typer'" in out
    assert f"torch is not installed -> {missing.install('torch')}" in out
    assert out.endswith("broken: packages, torch\n")


@pytest.mark.full
def test_the_doctor_works_without_packaging() -> None:
    code, out, _ = command(["packaging", "torch"], "doctor", "--json")
    assert code == 1
    assert "packaging is not installed" in out


@pytest.mark.full
def test_a_command_that_lacks_its_package_ends_with_one_line() -> None:
    code, out, error = command(["numpy"], "plan", "kalajdzievski2024/openorca", "--budget", "0.8")
    assert (code, out) == (1, "")
    assert error == f"error: numpy is not installed, and this command needs it; run: {missing.install('numpy')}\n"


def raised(outer: str, inner: ImportError) -> ImportError:
    """As transformers raises it: only the cause names the package."""
    try:
        try:
            raise inner
        except ImportError as error:
            raise ModuleNotFoundError(outer) from error
    except ImportError as error:
        return error


def test_the_cause_of_an_import_error_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    error = raised("Could not import module 'X'", ModuleNotFoundError("No module named 'absent'", name="absent.deep"))
    with pytest.raises(SystemExit) as stopped:
        missing.leave(error)
    assert stopped.value.code == 1
    message = "error: absent is not installed, and this command needs it; run: pip install 'absent'\n"
    assert capsys.readouterr().err == message


def test_a_version_that_does_not_fit_gives_a_one_line_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        missing.leave(ImportError("\ncannot import name 'x' from 'json'\nmore", name="json"))
    message = (
        "a package cannot be loaded: cannot import name 'x' from 'json'; `forgetting doctor` shows which versions are"
    )
    assert capsys.readouterr().err == f"error: {message} needed\n"


def test_an_import_error_of_our_own_is_shown_as_the_defect_it_is() -> None:
    with pytest.raises(ImportError, match="forgetting"):
        missing.leave(ImportError("cannot import name 'x' from 'forgetting.data'", name="forgetting.data"))
