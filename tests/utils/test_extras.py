"""Messages and documents say how to install the optional packages without replacing an editable installation."""

import re
import runpy
import sys
import tomllib
from pathlib import Path

import pytest

from utils import extras
from utils.errors import UserError
from utils.extras import install_command, require

ROOT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
CODE = [
    path
    for path in sorted(ROOT.rglob("*.py"))
    if not {"tests", ".venv", ".extras", ".lowest", ".newest"} & set(path.relative_to(ROOT).parts)
]
PROSE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "Makefile", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("extra", EXTRAS)
def test_in_a_checkout_an_extra_keeps_the_editable_installation(extra):
    assert install_command(extra) == f'pip install -e ".[{extra}]"'


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_installed_package_gets_an_extra_by_its_name(extra):
    in_wheel = runpy.run_path(extras.__file__, run_name="x2vlm.utils.extras")
    assert in_wheel["install_command"](extra) == f'pip install "x2vlm[{extra}]"'


def test_a_missing_package_is_reported_in_one_line_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError) as raised:
        require("gradio.themes", "page", where="serve")
    assert str(raised.value) == 'serve: needs gradio, which is not installed: pip install -e ".[page]"'
    assert require("os.path", "page").isfile(__file__)


def test_messages_name_extras_that_exist():
    code = "".join(path.read_text(encoding="utf-8") for path in CODE)
    named = set(re.findall(r"(?:install_command\(|\brequire\([\"']?[\w.]+[\"']?, )[\"'](\w+)[\"']", code))
    assert len(named) >= 10
    assert named <= set(EXTRAS)


def test_no_message_or_document_replaces_an_editable_installation():
    texts = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in [*CODE, *PROSE]}
    assert len(texts) > 400
    assert [path for path, text in texts.items() if re.search(r"pip install [\"']?\.\[", text)] == []
    documented = re.findall(r'pip install -e "\.\[([a-z,]+)\]"', "".join(texts.values()))
    assert {extra for each in documented for extra in each.split(",")} <= set(EXTRAS)
